"""The checkpoints that travel with the zoo are what their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from zoo.card import read_card
from zoo.checkpoint.read import load_backbone
from zoo.data.datasets import load_data
from zoo.data.module import ZooData
from zoo.errors import ZooError
from zoo.evaluate.banks import OWN
from zoo.evaluate.baselines import RANDOM
from zoo.evaluate.check import check_metric
from zoo.hub import hub
from zoo.recipe import find, flat, read, resolve
from zoo.tasks.load import load_task

HUB = Path(__file__).parent.parent / "hub"
NAMES = sorted(json.loads((HUB / "index.json").read_text())["checkpoints"])


def test_the_hub_is_whole_small_and_has_every_family():
    assert hub.verify(HUB) == []
    assert sum(path.stat().st_size for path in HUB.rglob("*") if path.is_file()) <= 60e6
    assert {entry["task"] for entry in hub.list_checkpoints(HUB)} >= {
        "autoencoder",
        "vae",
        "mae",
        "colorize",
        "ijepa",
        "rotation",
        "simclr",
        "vicreg",
        "swav",
        "distillation",
        "supervised",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_true(name):
    folder = HUB / name
    card, backbone = read_card(folder), load_backbone(folder)
    assert card["name"] == name and card["license"] and card["data"]["attribution"]
    assert card["parameters"] == sum(p.numel() for p in backbone.model.parameters()) <= 1.3e6
    now, was = (
        resolve(card["recipe"]),
        dict(flat(card["recipe"])),
    )  # keys that recipes have gained since stand there with their defaults
    assert {key: value for key, value in flat(now) if key in was} == was and card["recipe"]["task"] == card["task"]
    assert card["samples_seen"] == card["steps"] * card["recipe"]["data"]["batch_size"]
    shipped = dict(flat(read(find(name)))) | {
        "seed": card["seed"]
    }  # what it leaves out may have another default by now
    assert shipped == {key: was[key] for key in shipped}, "the recipe of that name is another one by now"


@pytest.mark.parametrize("name", NAMES)
def test_timm_alone_gives_the_same_features(name):
    backbone = load_backbone(HUB / name)
    plain = timm.create_model(f"local-dir:{HUB / name}", pretrained=True).eval()
    image = torch.rand(4, 3, backbone.size, backbone.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(backbone.pool(image), plain(backbone.normalize(image)))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_better_than_random_weights_beyond_the_spread(name):
    values = {(m["protocol"], m["features"], m["labels"]): m for m in read_card(HUB / name)["metrics"]}
    compared = [(key, m) for key, m in values.items() if key[1] == OWN]
    assert len(compared) >= 4
    for (protocol, _, labels), m in compared:
        base = values[protocol, RANDOM, labels]
        assert m["value"] - (m["sd"] or 0) > base["value"] + base["sd"], (protocol, labels)


@pytest.mark.parametrize("name", NAMES)
def test_the_check_metric_holds(name):
    card = read_card(HUB / name)
    try:
        dataset = load_data(card["data"]["name"], card["data"]["size"], download=False)
    except ZooError as error:
        pytest.skip(f"the data aren't on this machine: {error}")
    assert dataset.fingerprint == card["data"]["fingerprint"]
    assert check_metric(load_task(HUB / name), ZooData(dataset)) == pytest.approx(
        card["check"]["value"], abs=card["check"]["tolerance"]
    )

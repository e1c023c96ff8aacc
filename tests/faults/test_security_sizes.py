"""S6 and S7: what a few bytes of a stranger's describe takes neither the memory nor the day."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from card_example import a_card
from killing import within
from recipe_example import BASE, sentence

import zoo
from zoo.checkpoint.tensors import read_tensors
from zoo.checkpoint.write import export
from zoo.errors import ZooError
from zoo.machine import bounds as building
from zoo.machine.bounds import Bounded
from zoo.tasks.load import load_task

VIT = {
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "class_token": False,
    "global_pool": "avg",
    "fc_norm": False,
}
long = pytest.mark.faults


# ---- S6: networks --------------------------------------------------------------------------------


def described(folder: Path, part: str, **numbers: int) -> Path:
    """A checkpoint whose card a stranger has changed."""
    with torch.random.fork_rng():
        task = zoo.create_task(
            "mae",
            zoo.create_backbone("vit_tiny_patch16_224", size=32, **VIT),
            decoder_dim=16,
            decoder_depth=1,
            decoder_heads=2,
        )
    export(task.eval(), folder, a_card(name=folder.name, data=a_card()["data"] | {"size": 32}, metrics=[], check=None))
    card = json.loads((folder / "zoo.json").read_text())
    card[part] |= numbers
    (folder / "zoo.json").write_text(json.dumps(card))
    return folder


BEYOND = "takes more than 1.1 GB, or 60,000 operations of torch, to build"
MOST = "are at most 65,536"
CARDS = {
    "depth": ("backbone", 10**6, MOST),
    "depth ": ("backbone", 60_000, BEYOND),
    "embed_dim": ("backbone", 10**7, MOST),
    "num_heads": ("backbone", 10**18, MOST),
    "decoder_depth": ("task", 10**7, BEYOND),
    "decoder_dim": ("task", 10**12, BEYOND),
    "decoder_dim ": ("task", 2**62, "can't be built"),
}


@pytest.mark.parametrize("key", [pytest.param(key, marks=long) if key == "decoder_depth" else key for key in CARDS])
def test_s6_a_card_that_describes_a_network_far_larger_than_its_files(key, tmp_path):
    part, number, words = CARDS[key]
    folder = described(tmp_path / "bad", part, **{key.strip(): number})
    for use in (load_task, zoo.load) if part == "backbone" else (load_task,):
        assert words in within(600_000_000, lambda use=use: use(folder), tmp_path / "told")


def test_s6_every_use_of_a_card_is_bounded(tmp_path):
    folder = described(tmp_path / "bad", "task", decoder_dim=10**6)
    for use in (
        load_task,
        lambda f: zoo.adapt(f, "digits", mode="knn"),
        lambda f: zoo.evaluate(f, "digits", protocols=("knn",)),
    ):
        assert BEYOND in within(600_000_000, lambda use=use: use(folder), tmp_path / "told")


TINY = {"name": "test_resnet"}
RECIPES = {
    "long": (
        {"name": "resnet10t", "layers": [60_000]},
        {},
        "or 60,000 operations of torch, to build; give smaller numbers under backbone and task",
    ),
    "longer": ({"name": "test_resnet", "layers": [10**9]}, {}, MOST),
    "wide": (TINY, {"hidden": 10**12}, "the network of this recipe takes more than"),
    "below zero": (TINY, {"hidden": -5}, "task.hidden is -5; it has to be at least 1"),
    "overflow": (TINY, {"hidden": 2**62}, "can't be built: RuntimeError: Storage size calculation overflowed"),
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=long) if kind == "long" else kind for kind in RECIPES])
def test_s6_a_recipe_for_a_network_that_no_machine_holds(kind, tmp_path):
    backbone, task, words = RECIPES[kind]
    recipe = BASE | {"backbone": backbone, "task": {"name": "simclr"} | task}
    assert words in within(
        1_000_000_000, lambda: zoo.pretrain(recipe, out=tmp_path / "run", smoke=True, progress=False), tmp_path / "told"
    )


def test_s6_inside_of_the_bounds_the_same_numbers_are_drawn():
    def made() -> list[torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            generator = torch.Generator().manual_seed(1)
            network = zoo.create_backbone("test_resnet", size=16).state_dict()
            return [
                *network.values(),
                torch.randn(3, generator=generator),
                torch.randperm(9, generator=generator),
                torch.rand(2),
            ]

    with Bounded("this"):
        inside = made()
    assert all(torch.equal(*pair) for pair in zip(inside, made(), strict=True))


def test_s6_the_largest_that_is_built_and_the_smallest_that_is_not(monkeypatch):
    with Bounded("this", 4000) as bounds:
        torch.zeros(600)
        torch.zeros(400).add_(1)
    assert (bounds.bytes, bounds.operations) == (4000, 3)
    with (
        pytest.raises(
            ZooError, match="^this takes more than 0.0 GB, or 60,000 operations of torch, to build; smaller$"
        ),
        Bounded("this", 3999, "smaller"),
    ):
        torch.zeros(1000)
    monkeypatch.setattr(building, "OPERATIONS", 2)
    with pytest.raises(ZooError, match="this takes more than"), Bounded("this"):
        torch.zeros(1).add_(1).add_(1)


def test_s6_a_container_holds_less_than_its_machine(tmp_path, monkeypatch):
    second, third = tmp_path / "memory.max", tmp_path / "limit_in_bytes"
    monkeypatch.setattr(building, "CONTAINER", (str(tmp_path / "none"), str(second), str(third)))
    machine = building._memory()
    second.write_text("max\n")
    third.write_text(f"{2**63 - 4096}\n")  # what version 1 says for no limit
    assert building._memory() == machine
    second.write_text("5000\n")
    with pytest.raises(ZooError, match="this takes more than 0.0 GB"), Bounded("this"):
        torch.zeros(2000)


# ---- S7: files that unpack to more than they are -------------------------------------------------


def _zeros(file: Path, numbers: int) -> Path:
    torch.save({"x": torch.zeros(numbers)}, file)
    return file


def deflated(file: Path) -> Path:
    """100 MB of zeros in a file of 100 KB."""
    plain = _zeros(file.with_suffix(".plain"), 25_000_000)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in source.infolist():
            packed.writestr(member.filename, source.read(member))
    os.unlink(plain)
    return file


def overlapping(file: Path) -> Path:
    """A hundred members that lie in one place, each 1 MB."""
    plain = _zeros(file, 250_000)
    with zipfile.ZipFile(plain, "a") as content:
        (place,) = (member for member in content.infolist() if member.filename.endswith("data/0"))
        for number in range(1, 100):
            again = zipfile.ZipInfo(place.filename[:-1] + str(number))
            again.header_offset, again.CRC, again.file_size, again.compress_size = (
                place.header_offset,
                place.CRC,
                place.file_size,
                place.file_size,
            )
            content.filelist.append(again)
        content._didModify = True
    return file


@pytest.mark.parametrize("pack", [deflated, overlapping])
@pytest.mark.filterwarnings("ignore")
def test_s7_a_file_of_weights_that_unpacks_to_more_than_itself(pack, tmp_path):
    file = pack(tmp_path / "bomb.ckpt")
    assert file.stat().st_size < 1_200_000
    said = within(60_000_000, lambda: read_tensors(file), tmp_path / "told")
    assert "bomb.ckpt has " in said and "and would unpack to 10" in said and "torch.save compresses nothing" in said
    assert "would unpack" in sentence(lambda: zoo.import_checkpoint(file, "test_resnet", tmp_path / "made"))
    if pack is deflated:
        assert torch.load(file, weights_only=True)["x"].numel() == 25_000_000, "torch would have unpacked it"


@pytest.mark.parametrize("legacy", [False, True])
def test_s7_what_torch_saves_is_read(legacy, tmp_path):
    torch.save(
        {"x": torch.arange(1000.0), "y": torch.ones(0)}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy
    )
    assert torch.equal(read_tensors(tmp_path / "w.pth")["x"], torch.arange(1000.0))

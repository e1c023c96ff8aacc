from __future__ import annotations

import copy
import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from checkpoint_example import pictures, trained, untrained

import zoo
from zoo import card as cards
from zoo.card import read_card
from zoo.checkpoint.write import update_card
from zoo.errors import ZooError
from zoo.evaluate import printed, protocols
from zoo.evaluate.banks import extract
from zoo.evaluate.baselines import random_task, raw_pixels
from zoo.evaluate.check import check_metric
from zoo.evaluate.finetune import FineTuning
from zoo.evaluate.knn import accuracy, choose_k, knn
from zoo.evaluate.labels import choose_labelled, labels_of
from zoo.evaluate.linear import Probe, fit_probe
from zoo.evaluate.printed import print_table
from zoo.evaluate.reproduce import reproduce
from zoo.evaluate.table import evaluate
from zoo.hub import hub
from zoo.hub import push as pushing
from zoo.tasks.base import PretextTask
from zoo.tasks.load import load_task


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    trained()  # before a test takes away what training needs
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZOO_HUB", raising=False)


@pytest.fixture(scope="module")
def measured() -> list[dict]:
    """The rows of the trained checkpoint, with every label and with three per class."""
    return evaluate(trained(), protocols=("knn",), labels=(1.0, 3)) + evaluate(
        trained(), protocols=("linear",), labels=(3,)
    )


@pytest.fixture
def mine(tmp_path) -> Path:
    """A copy of the trained checkpoint that a test may change."""
    return Path(shutil.copytree(trained(), tmp_path / "mine"))


@pytest.fixture(scope="module")
def digits():
    return zoo.create_data("digits")


def by_key(rows: list[dict]) -> dict:
    return {(row["protocol"], row["features"], type(row["labels"]), row["labels"]): row for row in rows}


def frozen(bank, rows: torch.Tensor, protocol: str) -> float:
    """One value by the functions that are tested elsewhere."""
    x, y, held = bank.x["train"][rows], bank.y["train"][rows], (bank.x["validation"], bank.y["validation"])
    if protocol == "linear":
        return accuracy(fit_probe(x, y, *held, 10).predict(bank.x["test"]), bank.y["test"])
    return accuracy(knn(x, y, bank.x["test"], choose_k(x, y, *held, 10)[0], 10), bank.y["test"])


# ---- rows ----------------------------------------------------------------------------------------


def test_every_row_is_there_and_fit_for_a_card(measured):
    found = [(row["protocol"], row["labels"], row["features"]) for row in measured]
    assert found == [
        (protocol, amount, features)
        for protocol, amount in (("knn", 1.0), ("knn", 3), ("linear", 3))
        for features in ("backbone", "random weights", "pixels")
    ]
    for row in measured:
        cards.check_metric(json.loads(json.dumps(row)), "here")
        assert (row["data"], row["split"]) == ("digits", "test") and 10 < row["value"] <= 100
        assert (
            row["command"]
            == f"zoo evaluate {read_card(trained())['name']} --data digits --protocols {row['protocol']} --labels "
            f"{row['labels']}"
        )


def test_runs_and_deviation(measured):
    runs = {
        ("backbone", 1.0): 1,
        ("random weights", 1.0): 3,
        ("pixels", 1.0): 1,
        ("backbone", 3): 5,
        ("random weights", 3): 15,
        ("pixels", 3): 5,
    }
    for row in measured:
        assert row["seeds"] == runs[row["features"], row["labels"]]
        assert (row["sd"] is None) == (row["seeds"] == 1) and (row["sd"] is None or 0 < row["sd"] < 15)


def test_values_are_those_of_the_plain_functions(measured, digits):
    rows, y = by_key(measured), labels_of(digits)["train"]
    banks = {"backbone": extract(load_task(trained()), digits)["backbone"], "pixels": raw_pixels(digits)}
    for protocol, features, amount in (
        ("knn", "backbone", 1.0),
        ("knn", "backbone", 3),
        ("linear", "backbone", 3),
        ("knn", "pixels", 3),
    ):
        draws = [choose_labelled(y, amount, draw) for draw in range(1 if amount == 1.0 else 5)]
        values = [frozen(banks[features], chosen, protocol) for chosen in draws]
        row = rows[protocol, features, type(amount), amount]
        assert row["value"] == round(statistics.mean(values), 2)
        assert row["sd"] == (round(statistics.stdev(values), 2) if len(values) > 1 else None)


def test_training_shows_beside_random_weights(measured, digits):
    rows, card = by_key(measured), read_card(trained())
    assert rows["knn", "backbone", int, 3]["value"] > rows["knn", "random weights", int, 3]["value"] + 5
    tasks = [random_task(card, draw) for draw in (0, 1, 0)]
    states = [task.backbone.state_dict() for task in tasks]
    weight = next(key for key, value in states[0].items() if value.ndim == 4)
    assert torch.equal(states[0][weight], states[2][weight]) and not torch.equal(states[0][weight], states[1][weight])
    assert (
        not any(task.training for task in tasks)
        and states[0].keys() == load_task(trained()).backbone.state_dict().keys()
    )
    every = torch.arange(len(labels_of(digits)["train"]))
    values = [frozen(extract(random_task(card, draw), digits)["backbone"], every, "knn") for draw in range(3)]
    assert rows["knn", "random weights", float, 1.0]["value"] == round(statistics.mean(values), 2)


def test_without_baselines_and_with_one_label_per_class():
    rows = evaluate(trained(), protocols=("knn",), labels=(1, 1.0, 1), baselines=False)
    assert {row["features"] for row in rows} == {"backbone"}
    assert [(type(row["labels"]), row["labels"], row["seeds"]) for row in rows] == [(int, 1, 5), (float, 1.0, 1)]
    assert rows[0]["value"] < rows[1]["value"]


def test_fine_tuning_has_one_run_for_each_draw_or_network(monkeypatch):
    runs = []

    def quick(backbone, probe, data, rows, how):
        runs.append((backbone, rows.tolist(), how.seed, how.flip))
        return tune(backbone, probe, data, rows, FineTuning(steps=2, batch_size=8))

    tune = protocols.finetune
    monkeypatch.setattr(protocols, "finetune", quick)
    monkeypatch.setattr(
        protocols,
        "fit_probe",
        lambda x, y, held_x, held_y, classes: Probe(x[:classes].double(), torch.zeros(classes), 1.0, {}),
    )
    rows = evaluate(trained(), protocols=("finetune",), labels=(0.5, 1.0))
    assert [(row["features"], row["labels"], row["seeds"], row["sd"] is None) for row in rows] == [
        ("backbone", 0.5, 3, False),
        ("random weights", 0.5, 3, False),
        ("backbone", 1.0, 1, True),
        ("random weights", 1.0, 3, False),
    ]
    assert [seed for _, _, seed, _ in runs] == [0, 1, 2, 0, 1, 2, 0, 0, 1, 2] and {flip for *_, flip in runs} == {0.0}
    own, random = runs[:3], runs[3:6]
    assert len({id(backbone) for backbone, *_ in own}) == 1 and len({id(backbone) for backbone, *_ in random}) == 3
    assert own[0][1] != own[1][1] and [chosen for _, chosen, *_ in own] == [chosen for _, chosen, *_ in random]
    for row in rows:
        cards.check_metric(row, "here")


def test_pictures_are_mirrored_in_fine_tuning_only_if_the_task_did_so():
    backbone = zoo.create_backbone("test_resnet", size=8)
    assert [protocols.tuning_for(zoo.create_task("simclr", backbone, flip=flip), 7) for flip in (0.0, 0.3)] == [
        FineTuning(flip=0.0, seed=7),
        FineTuning(flip=0.5, seed=7),
    ]


# ---- the card ------------------------------------------------------------------------------------


def test_saving_merges_into_the_card(mine):
    other = {
        "protocol": "linear",
        "features": "backbone",
        "data": "digits",
        "split": "test",
        "labels": 0.5,
        "value": 1.0,
        "sd": None,
        "seeds": 1,
        "command": "by hand",
    }
    per_class = other | {"protocol": "knn", "labels": 1}
    stale = other | {"protocol": "knn", "labels": 1.0}
    update_card(mine, metrics=[stale, other, per_class])
    evaluate(mine, protocols=("knn",), labels=(1.0,))
    assert read_card(mine)["metrics"] == [stale, other, per_class]  # not without save
    rows = evaluate(mine, protocols=("knn",), labels=(1.0,), save=True)
    assert read_card(mine)["metrics"] == [other, per_class, *rows]
    evaluate(mine, protocols=("knn",), labels=(1.0,), save=True)
    assert read_card(mine)["metrics"] == [other, per_class, *rows]  # twice is once
    assert f"{rows[0]['value']:.1f}" in (mine / "README.md").read_text()


def test_a_card_that_can_not_be_changed_is_refused_before_measuring(mine, tmp_path, monkeypatch):
    update_card(mine, license="Apache-2.0")
    pushing.push(mine, tmp_path / "hub", name="there")
    monkeypatch.setattr(PretextTask, "represent", None)
    with pytest.raises(ZooError, match="is the cache's copy of a hub's checkpoint and can't be changed"):
        evaluate("there", hub=tmp_path / "hub", save=True)


def test_an_honest_card_is_reproduced(mine):
    evaluate(mine, protocols=("knn",), labels=(1.0, 1), save=True)
    card, found = read_card(mine), reproduce(mine)
    assert len(found) == 1 + len(card["metrics"]) == 7 and all(row["holds"] for row in found)
    assert (
        [row["was"] for row in found]
        == [row["now"] for row in found]
        == [card["check"]["value"], *[row["value"] for row in card["metrics"]]]
    )
    assert [row["row"] for row in found][:3] == [
        "check: knn on 2,000 images of digits",
        "knn, backbone, labels: all, on digits",
        "knn, random weights, labels: all, on digits",
    ]


def test_an_altered_value_does_not_hold(mine):
    rows = evaluate(mine, protocols=("knn",), labels=(3, 1.0), baselines=False)
    honest, check = copy.deepcopy(rows), read_card(mine)["check"]
    rows[0]["value"] += 0.6
    rows[1]["value"] -= 0.4  # within half a point
    foreign = honest[0] | {"features": "something else"}
    update_card(mine, metrics=[*rows, foreign], check=check | {"value": check["value"] - check["tolerance"] - 0.1})
    found = reproduce(mine)
    assert [row["holds"] for row in found] == [False, False, True, False]
    assert [row["now"] for row in found] == [check["value"], honest[0]["value"], honest[1]["value"], None]


def test_fine_tuning_holds_within_its_deviation(mine, monkeypatch):
    row = {
        "protocol": "finetune",
        "features": "backbone",
        "data": "digits",
        "split": "test",
        "labels": 0.01,
        "value": 50.0,
        "sd": 2.0,
        "seeds": 3,
        "command": "",
    }
    update_card(mine, metrics=[row, row | {"labels": 0.02, "sd": None}, row | {"protocol": "linear"}], check=None)
    for now, holds in ((51.9, [True, False, False]), (52.1, [False, False, False]), (50.4, [True, True, True])):
        monkeypatch.setattr(
            "zoo.evaluate.reproduce.measure_study",
            lambda study, pairs, baselines=True, now=now: [
                row | {"protocol": protocol, "labels": amount, "value": now} for protocol, amount in pairs
            ],
        )
        assert [verdict["holds"] for verdict in reproduce(mine)] == holds


def test_a_card_without_metrics_can_not_be_reproduced(mine):
    update_card(mine, metrics=[], check=None)
    with pytest.raises(
        ZooError, match="has no metrics to reproduce; write some into it by:  zoo evaluate .*mine --save"
    ):
        reproduce(mine)


def test_the_check_is_a_vote_of_twenty(digits):
    task, check = load_task(trained()), read_card(trained())["check"]
    bank = extract(task, digits)["backbone"]
    plain = accuracy(knn(bank.x["train"], bank.y["train"], bank.x["validation"], 20, 10), bank.y["validation"])
    assert check_metric(task, digits) == round(plain, 2) == check["value"] > 50
    with torch.no_grad():
        for p in task.backbone.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    assert check_metric(task, digits) < check["value"] - 3  # other weights, another value


def test_the_check_needs_labels_and_validation(digits, tmp_path):
    task = load_task(trained())
    flat = tmp_path / "flat"
    shutil.copytree(pictures(tmp_path / "classes") / "left", flat)
    assert check_metric(task, zoo.create_data(f"folder:{flat}", size=8)) is None
    assert check_metric(task, zoo.create_data(f"folder:{tmp_path / 'classes'}", size=8)) > 20


# ---- for people ----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 200])
def test_every_number_is_printed(measured, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = measured + [row | {"labels": 1, "value": row["value"] / 2} for row in measured if row["labels"] == 3]
    rows += [
        row | {"data": "folder:[x]", "value": row["value"] / 3, "features": f"[{row['features']}]"} for row in measured
    ]
    print_table(rows)
    out = capsys.readouterr().out
    for row in rows:
        line = next(line for line in out.splitlines() if f"│ {row['features']} " in line)
        assert f"{row['value']:.1f}" + ("" if row["sd"] is None else f" ± {row['sd']:.1f}") in line
        assert line.count("│") == (
            5 if row["data"] == "folder:[x]" else 7
        )  # the names, and the columns of both protocols
    for words in ("test split of digits, %", "test split of folder:[x], %", "all", "3 per class", "1 per class"):
        assert words in " ".join(out.split())


def test_the_best_of_a_column_is_bold():
    row = {"value": 10.0, "sd": 0.5}
    assert (
        printed._cell(row, 10.0) == "[bold]10.0 ± 0.5[/bold]"
        and printed._cell(row, 11.0) == "10.0 ± 0.5"
        and printed._cell(None, 1.0) == "-"
    )
    assert printed._cell({"value": 9.96, "sd": None}, 99.0) == "10.0"


# ---- refusals ------------------------------------------------------------------------------------


def refused(**given) -> str:
    with pytest.raises(ZooError) as caught:
        evaluate(given.pop("checkpoint", trained()), **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_can_not_be_measured_is_refused_before_anything_is(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "classes")
    monkeypatch.setattr(PretextTask, "represent", None)
    assert "'knm' is not a protocol; did you mean knn?" in refused(protocols=("knn", "knm"))
    with monkeypatch.context() as patch:  # these before any data are read
        patch.setattr("zoo.data.module.load_data", None)
        assert "0 is no amount of labels" in refused(labels=(1.0, 0))
        assert "there is no data set 'digit'; did you mean digits?" in refused(data="digit")
        assert "stl10-unlabeled has no labels (" in refused(data="stl10-unlabeled")
    assert "200 labels per class are asked for, and class 8 has 122 training images; ask for at most 122" in refused(
        labels=(1.0, 200)
    )
    flat = f"folder:{folder / 'left'}"
    assert f"{flat} has no labels (" in refused(data=flat)


def test_colour_into_a_grey_network_is_refused(tmp_path):
    grey = untrained(tmp_path / "grey", in_chans=1)
    said = refused(checkpoint=grey, data=f"folder:{pictures(tmp_path / 'classes')}", protocols=("knn",))
    assert "test_resnet was made for 1 channel(s) (backbone.in_chans), but the images have 3" in said
    assert [row["features"] for row in evaluate(grey, protocols=("knn",), labels=(1,))] == [
        "backbone",
        "random weights",
        "pixels",
    ]


def test_a_folder_of_pictures_is_measured_in_one_line(tmp_path):
    rows = evaluate(trained(), f"folder:{pictures(tmp_path / 'my pictures')}", protocols=("linear",), labels=(1.0,))
    assert [row["features"] for row in rows] == ["backbone", "random weights", "pixels"]
    assert rows[0]["command"].endswith(f"--data 'folder:{tmp_path}/my pictures' --protocols linear --labels 1.0")

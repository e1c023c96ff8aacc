"""How often a run looks at its features on the way, and at what."""

from __future__ import annotations

import csv
import sys

import pytest
from killing import killed
from PIL import Image
from run_example import place, recipe, train, weights  # noqa: F401

import zoo
from zoo.card import read_card
from zoo.tasks.base import PretextTask


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        ({"max_steps": 3}, [0, 1, 2]),
        ({"max_steps": 13, "accumulate": 2}, [2, 5, 7, 10, 12]),  # less than one and two epochs of nine batches
        ({"max_steps": -1, "max_epochs": 2}, [3, 7, 10, 14, 17]),
        ({"max_steps": 20, "validate_every": 2}, [17]),
    ],
    ids=str,
)
def test_a_run_is_looked_at_five_times_or_every_so_many_epochs(trainer, steps, tmp_path):
    """Evenly, the last time at its end. The metrics are those of the weights at the time."""
    run = train(tmp_path / "run", trainer={"validate_every": None} | trainer)
    rows = [row for row in csv.DictReader((run / "metrics.csv").read_text().splitlines()) if row["val_loss"]]
    assert [int(row["step"]) for row in rows] == steps and all(
        row["knn"] and row["spread"] and row["effective_rank"] for row in rows
    )
    if "validate_every" not in trainer:
        assert float(rows[-1]["knn"]) == pytest.approx(read_card(run / "checkpoint")["check"]["value"], abs=0.005)


def test_a_look_is_at_a_part_of_the_validation_split(tmp_path, monkeypatch):
    """By default, since it comes five times; and always the same part. With a number of epochs it is at the whole
    split.
    """
    seen = []
    step = PretextTask.validation_step
    monkeypatch.setattr(
        PretextTask,
        "validation_step",
        lambda self, batch, number: seen.append(batch["index"].tolist()) or step(self, batch, number),
    )
    monkeypatch.setattr(sys.modules["zoo.train.run"], "LOOKED_AT", 150)
    train(tmp_path / "run", trainer={"max_steps": 2, "validate_every": None})
    whole = zoo.create_data("digits", size=16).dataset.splits["validation"].tolist()
    assert [len(batch) for batch in seen] == [128, 22, 128, 22] and seen[:2] == seen[2:] and set(seen[0]) < set(whole)
    del seen[:]
    train(tmp_path / "every", trainer={"max_steps": 9, "validate_every": 1})
    assert sum(seen, []) == whole


def test_without_a_validation_split_there_are_no_looks(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8), (100 * number, 0, 0)).save(tmp_path / "pictures" / f"{number}.png")
    values = recipe(
        data={"name": f"folder:{tmp_path}/pictures", "batch_size": 1, "size": 64},
        trainer={"max_steps": 5, "validate_every": None, "save_every": 1},
    )
    assert killed(values, tmp_path / "run", PretextTask, "training_step", 3)
    assert weights(zoo.pretrain(values, out=tmp_path / "run", resume=True, progress=False)) == weights(
        zoo.pretrain(values, out=tmp_path / "undisturbed", progress=False)
    )

"""The check of a card: one number that is quick enough to recompute for every checkpoint of a hub."""

from __future__ import annotations

from zoo.data.module import ZooData
from zoo.evaluate.knn import accuracy, knn
from zoo.evaluate.study import Study
from zoo.tasks.base import PretextTask

CHECK_IMAGES = 2000  # of each split
NEIGHBOURS = 20


def check_metric(task: PretextTask, data: ZooData) -> float | None:
    """The check of a task that has just been trained, see `check_of`."""
    return check_of(Study.of(task, data))


def check_of(study: Study) -> float | None:
    """Percent of 2,000 validation samples that the 20 nearest of 2,000 training samples vote right; None without
    labels.
    """
    if "label" not in study.info.fields or not study.info.splits.get("validation"):
        return None
    banks = study.some_banks({"train": CHECK_IMAGES, "validation": CHECK_IMAGES})
    bank = next(iter(banks.values()))
    x, y, k = bank.x["train"], bank.y["train"], min(NEIGHBOURS, len(bank.x["train"]))
    found = knn(x, y, bank.x["validation"], k, len(study.classes))
    return round(accuracy(found, bank.y["validation"]), 2)

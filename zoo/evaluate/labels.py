"""Labels of a data set, and which of them a measurement may use."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.data.dataset import some_of
from zoo.data.datasets import DataInfo
from zoo.data.module import ZooData
from zoo.draws import mix
from zoo.errors import ZooError

SPLITS = ("train", "validation", "test")


def labels_of(data: ZooData, splits: tuple[str, ...] = SPLITS, most: int | None = None) -> dict[str, Tensor]:
    """Labels int64 (n,) of each split, or of `most` of its samples; none where the set has none."""
    label = data.dataset.fields.get("label")
    return {} if label is None else {split: label[some_of(data.dataset.splits[split], most)] for split in splits}


def require_labels(info: DataInfo) -> None:
    """Raises ZooError unless a representation can be measured on this set: labels, and something in each split."""
    if (why := lacks_labels(info)) is not None:
        raise ZooError(why)


def lacks_labels(info: DataInfo) -> str | None:
    """Why a representation can't be measured on this set, as one sentence; None if it can."""
    if "label" not in info.fields:
        return (
            f"{info.name} has no labels ({info.summary}), so nothing can be adapted to it or measured on it; "
            "give a folder with a folder per class"
        )
    for split in SPLITS:
        if not info.splits.get(split):
            return (
                f"the {split} split of {info.name} is empty, and there is no measuring without it; give more samples "
                "of each class"
            )
    return None


def require_amount(labels: float | int) -> None:
    """Raises ZooError unless `labels` is an amount of labels: a share (float, above 0, at most 1), or so many per class
    (int, at least 1).
    """
    if (
        isinstance(labels, bool)
        or not isinstance(labels, (int, float))
        or not (labels >= 1 if isinstance(labels, int) else 0 < labels <= 1)
    ):
        raise ZooError(
            f"{labels!r} is no amount of labels; give a share above 0 and at most 1, such as 0.01, or a whole number "
            "per class, such as 5"
        )


def choose_labelled(y: Tensor, labels: float | int, draw: int, classes: tuple[str, ...] = ()) -> Tensor:
    """Rows of training labels y (n,) that may be used: a share of each class (float, above 0, at most 1), or so many of
    each (int).

    A share gives every class at least one. Another `draw` (0, 1, ...) chooses others. Raises ZooError for an amount
    that isn't one, and for classes with fewer samples than are asked for.
    """
    require_amount(labels)
    if is_all(labels):
        return torch.arange(len(y))
    present, sizes = y.unique(return_counts=True)
    fewest = int(sizes.min())
    if isinstance(labels, int) and fewest < labels:
        label = int(present[sizes.argmin()])
        raise ZooError(
            f"{labels} labels per class are asked for, and class {classes[label] if classes else label} has {fewest} "
            f"training images; ask for at most {fewest}"
        )
    generator = torch.Generator().manual_seed(mix(draw, round(1e6 * labels)))
    chosen = []
    for label in present:
        rows = (y == label).nonzero()[:, 0]
        count = labels if isinstance(labels, int) else max(1, round(labels * len(rows)))
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def is_all(labels: float | int) -> bool:
    """Whether an amount is every label there is: 1.0, for 1 is one of each class."""
    return isinstance(labels, float) and labels == 1.0

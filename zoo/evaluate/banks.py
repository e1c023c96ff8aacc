"""Features of every split, extracted once, and the two that stand beside a task's own in every table: random weights
and raw pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.data.dataset import some_of
from zoo.data.datasets import DataInfo
from zoo.data.module import ZooData
from zoo.draws import Draw, counted, mix
from zoo.errors import ZooError
from zoo.tasks.base import PretextTask
from zoo.views import resize, to_float

OWN, RANDOM, PIXELS = "backbone", "random weights", "pixels"
SPLITS = ("train", "validation", "test")
BATCH = 512
PIXEL_SIDE = 32  # raw pixels of larger pictures are averaged down to so many a side


@dataclass(frozen=True)
class Bank:
    """One representation of a data set: features x (n, D) float32 and labels y (n,) int64 of each split."""

    x: dict[str, Tensor]
    y: dict[str, Tensor]


def extract(
    task: PretextTask, data: ZooData, splits: tuple[str, ...] = SPLITS, most: int | None = None
) -> dict[str, Bank]:
    """What `task.features` gives for the images of the splits (or `most` of each), by name; on the task's device, in
    eval mode.

    Each module's training mode, gradients and random generators are left as they were found.
    """
    parts: dict[str, dict[str, list[Tensor]]] = {}
    modes = {module: module.training for module in task.modules()}
    task.eval()
    try:
        with torch.no_grad(), counted(task.device, Draw.FEATURES):
            for split in splits:
                for image in _images(data, split, most):
                    for name, x in task.features(to_float(image.to(task.device))).items():
                        parts.setdefault(name, {}).setdefault(split, []).append(x.float().cpu())
    finally:
        for module, training in modes.items():
            module.training = training
    y = labels_of(data, splits, most)
    return {
        name: Bank({split: torch.cat(batches) for split, batches in found.items()}, y) for name, found in parts.items()
    }


def raw_pixels(data: ZooData, splits: tuple[str, ...] = SPLITS) -> Bank:
    """The pictures themselves, flattened, in [0, 1]; those larger than 32 pixels a side are averaged down to that."""
    side = min(data.dataset.info.size, PIXEL_SIDE)
    x = {split: torch.cat([resize(image, side).flatten(1) for image in _images(data, split)]) for split in splits}
    return Bank(x, labels_of(data, splits))


def labels_of(data: ZooData, splits: tuple[str, ...] = SPLITS, most: int | None = None) -> dict[str, Tensor]:
    """Labels int64 (n,) of each split, or of `most` of its images; none where the set has none."""
    label = data.dataset.fields.get("label")
    return {} if label is None else {split: label[some_of(data.dataset.splits[split], most)] for split in splits}


def _images(data: ZooData, split: str, most: int | None = None) -> Iterator[Tensor]:
    return (
        data.dataset.fields["image"][rows]
        for rows in some_of(data.dataset.splits[split], most).split(BATCH)
        if len(rows)
    )


def require_labels(info: DataInfo) -> None:
    """Raises ZooError unless a representation can be measured on this set: labels, and something in each split."""
    if "label" not in info.fields:
        raise ZooError(
            f"{info.name} has no labels ({info.summary}), so nothing can be adapted to it or measured on it; "
            "give a folder with a folder per class"
        )
    for split in SPLITS:
        if not info.splits.get(split):
            raise ZooError(
                f"the {split} split of {info.name} is empty, and there is no measuring without it; give more pictures "
                "of each class"
            )


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
    that isn't one, and for classes with fewer images than are asked for.
    """
    require_amount(labels)
    if isinstance(labels, float) and labels == 1.0:
        return torch.arange(len(y))
    present, sizes = y.unique(return_counts=True)
    fewest = int(sizes.min())
    if isinstance(labels, int) and fewest < labels:
        label = int(present[sizes.argmin()])
        raise ZooError(
            f"{labels} labels per class are asked for, and class {classes[label] if classes else label} has {fewest} "
            "training images; "
            f"ask for at most {fewest}"
        )
    generator = torch.Generator().manual_seed(mix(draw, round(1e6 * labels)))
    chosen = []
    for label in present:
        rows = (y == label).nonzero()[:, 0]
        count = labels if isinstance(labels, int) else max(1, round(labels * len(rows)))
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(chosen).sort().values

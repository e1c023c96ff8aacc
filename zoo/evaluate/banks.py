"""Representations of every split of a data set: what a task gives, once for each sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.data.dataset import some_of, taken
from zoo.data.module import ZooData
from zoo.draws import Draw, counted
from zoo.errors import ZooError
from zoo.evaluate.labels import SPLITS, labels_of
from zoo.tasks.base import PretextTask

OWN = "backbone"  # what a task with one tower calls the representation of its backbone
BATCH = 512


@dataclass(frozen=True)
class Bank:
    """One representation of a data set: features x (n, D) float32 and labels y (n,) int64 of each split."""

    x: dict[str, Tensor]
    y: dict[str, Tensor]


@dataclass
class Candidate:
    """A row of the table in the making: one representation, of one network or several."""

    name: str
    banks: list[Bank]
    tasks: list[PretextTask]  # the networks, where they can be fine-tuned; else none


def extract(
    task: PretextTask, data: ZooData, splits: tuple[str, ...] = SPLITS, most: int | None = None
) -> dict[str, Bank]:
    """What `task.represent` gives for the samples of the splits (or `most` of each), by name; on the task's device, in
    eval mode.

    Each module's training mode, gradients and random generators are left as they were found. Raises ZooError where the
    data lack the field of every tower.
    """
    return banks_of({split: extract_split(task, data, split, most) for split in splits}, data, most)


def banks_of(
    features: dict[str, dict[str, Tensor]], data: ZooData, most: dict[str, int | None] | int | None = None
) -> dict[str, Bank]:
    """A bank for each representation, from the features (n, D) of each split by name, of `most` samples of it."""
    limits = most if isinstance(most, dict) else dict.fromkeys(features, most)
    y: dict[str, Tensor] = {}
    for split in features:
        y |= labels_of(data, (split,), limits[split])
    names = dict.fromkeys(name for found in features.values() for name in found)
    return {name: Bank({split: found[name] for split, found in features.items()}, y) for name in names}


def extract_split(task: PretextTask, data: ZooData, split: str, most: int | None = None) -> dict[str, Tensor]:
    """The features (n, D) float32 of one split (or of `most` of its samples) by name, as `extract` gives them."""
    parts: dict[str, list[Tensor]] = {}
    modes = {module: module.training for module in task.modules()}
    fields = fields_read(task, data)
    task.eval()
    try:
        with torch.no_grad(), counted(task.device, Draw.FEATURES):
            for batch in batches(data, split, fields, most):
                for name, x in task.represent(_moved(batch, task.device)).items():
                    parts.setdefault(name, []).append(x.float().cpu())
    finally:
        for module, training in modes.items():
            module.training = training
    return {name: torch.cat(found) for name, found in parts.items()}


def fields_read(task: PretextTask, data: ZooData) -> tuple[str, ...]:
    """The fields of the data that a representation is made from: those of the towers and of `needs`, never the label.

    Raises ZooError where the data have none of the towers' fields.
    """
    info = data.dataset.info
    towers = [backbone.field for backbone in task.tower.values()]
    if not any(field in info.fields for field in towers):
        raise ZooError(
            f"{info.name} has {', '.join(info.fields) or 'no fields'}, and the task {task.name} reads "
            f"{' and '.join(dict.fromkeys(towers))}; give a data set with that field"
        )
    return tuple(field for field in dict.fromkeys([*towers, *task.needs]) if field in info.fields and field != "label")


def batches(data: ZooData, split: str, fields: tuple[str, ...], most: int | None = None) -> Iterator[dict]:
    """These fields of a split (or of `most` of its samples), in batches."""
    columns = {field: data.dataset.fields[field] for field in fields}
    rows = some_of(data.dataset.splits[split], most)
    return taken(columns, (part for part in rows.split(BATCH) if len(part)))


def _moved(batch: dict, device: torch.device) -> dict:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}

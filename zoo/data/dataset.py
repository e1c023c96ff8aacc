"""A data set in memory or where it lies, and a batch of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.columns import Column, Fields, is_near, take_column
from zoo.data.info import DataInfo

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Dataset:
    """A set in memory, or where it lies.

    fields       columns by name: image uint8 (n, C, size, size), RGB or grey; label and other numbers int64 (n,); text
                 n str; of shards, a `Column` that reads the rows that are asked for
    splits       train, validation, test: int64 indices into the fields
    fingerprint  sha256 hex of the files that were read, the version and the size
    bad          of a folder: {path, reason, maybe replaced_by} of each image that can't be read; of shards: of
                 each that was met, with its byte in the shard
    """

    info: DataInfo
    fields: Fields
    splits: dict[str, Tensor]
    fingerprint: str
    bad: list[dict] = field(default_factory=list)

    def follow(self, folder: Path) -> None:
        """A run on this set has begun in `folder`; columns may keep lists of what they met there."""
        for column in self.fields.values():
            if isinstance(column, Column):
                column.follow(folder)


def take(fields: Fields, rows: Tensor) -> dict[str, Any]:
    """A batch: these rows of every field, and `index` (B,) int64, the rows themselves."""
    return {name: take_column(column, rows) for name, column in fields.items()} | {"index": rows}


def taken(fields: Fields, parts: Iterable[Tensor]) -> Iterator[dict]:
    """The batch of each part of rows. A column that is slow to read is read ahead."""
    slow = next((name for name, column in fields.items() if not is_near(column)), None)
    if slow is None:
        yield from (take(fields, rows) for rows in parts)
        return
    others = {name: column for name, column in fields.items() if name != slow}
    for rows, values in fields[slow].ahead(parts):
        yield {slow: values} | take(others, rows)


def some_of(rows: Tensor, most: int | None) -> Tensor:
    """The rows, or `most` of them, always the same: not the first ones, which in a folder are all of one class."""
    if most is None or len(rows) <= most:
        return rows
    import torch

    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most].sort().values]

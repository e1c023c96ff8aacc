"""Columns of a data set: one field of every sample, in memory or where it lies.

A column is a tensor, a list of texts, or an object that reads rows when they are asked for (`Column`). Importing this
imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Column(ABC):
    """Rows that are read when they are asked for.

    near  whether rows in any order are read as quickly as neighbouring ones; where they are not, training mixes rows
          within windows (`zoo.data.order.in_windows`)
    """

    near = True

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def take(self, rows: Tensor) -> Any:
        """The values of `rows` (B,) int64, stacked or as a list."""

    def follow(self, folder: Path) -> None:  # noqa: B027  most columns keep nothing
        """A run that reads this column has begun in `folder`; lists of what it met may be kept there."""

    def ahead(self, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Any]]:
        """(rows, their values) of each part. A column that is slow to read may read the next parts meanwhile."""
        return ((rows, self.take(rows)) for rows in parts)


Fields = dict[str, "Tensor | list[str] | Column"]


def take_column(column: Tensor | list[str] | Column, rows: Tensor) -> Any:
    """The values of `rows` (B,) int64 of any column."""
    if isinstance(column, Column):
        return column.take(rows)
    return [column[row] for row in rows.tolist()] if isinstance(column, list) else column[rows.to(column.device)]


def is_near(column: Tensor | list[str] | Column) -> bool:
    """Whether rows in any order are read quickly."""
    return not isinstance(column, Column) or column.near

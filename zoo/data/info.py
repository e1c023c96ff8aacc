"""What is known of a data set without having it. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zoo.card import LARGEST_SIZE
from zoo.errors import ZooError

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class DataInfo:
    """One data set's entry.

    name         as recipes write it
    fields       of a sample, e.g. ("image", "label", "text"); see Dataset for their types
    channels     1 grey or 3 RGB
    size         side of its square images in pixels, when nothing else is asked for
    classes      names of the labels 0..K-1; empty when there are no labels
    version      of the files and the splits; another version may hold other samples
    license      SPDX expression where there is one, else what its makers say
    attribution  whom to name, in one line
    homepage     of the set itself
    splits       {"train": samples, ...}
    summary      one line
    names        names of the values of its other int64 fields, e.g. {"artist": ("google", "twitter")}
    """

    name: str
    fields: tuple[str, ...]
    channels: int
    size: int
    classes: tuple[str, ...]
    version: str
    license: str
    attribution: str
    homepage: str
    splits: dict[str, int]
    summary: str
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)


FOLDER, SHARDS = "folder:", "shards:"


def check_size(size: int | None) -> None:
    """Raises ZooError unless `size` is a side in pixels, or None for the set's own."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_SIZE):
        raise ZooError(f"data.size is {size!r}; it has to be a whole number of pixels from 1 to {LARGEST_SIZE}")

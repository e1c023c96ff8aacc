"""What is known of a data set without having it. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from zoo.card import LARGEST_SIZE
from zoo.errors import ZooError
from zoo.fields import Image, Kind, Label, Number, Text, tidy_size

SORTS = (Image, Label)  # kinds that DataInfo's attributes describe too


@dataclass(frozen=True)
class DataInfo:
    """One data set's entry.

    A set of images is described by `channels`, `size` and `classes`. Of any other field `kinds` says what it is.
    Either way `kinds` is complete once the entry is made, and `channels`, `size` and `classes` agree with it.

    name         as recipes write it
    fields       of a sample, e.g. ("image", "label", "text"); by default those of `kinds`
    channels     1 grey or 3 RGB; 0 when there are no images
    size         of its images in pixels when nothing else is asked for: the side of a square or (height, width); 0 when
                 there are no images
    classes      names of the labels 0..K-1; empty when there are no labels
    version      of the files and the splits; another version may hold other samples
    license      SPDX expression where there is one, else what its makers say
    attribution  whom to name, in one line
    homepage     of the set itself
    splits       {"train": samples, ...}
    summary      one line
    names        names of the values of its other int64 fields, e.g. {"artist": ("google", "twitter")}
    kinds        field -> what it is (`zoo.fields`); a field that isn't named here is an image, a label or a text if
                 that is its name, and else a number
    """

    name: str
    fields: tuple[str, ...] = ()
    channels: int = 0
    size: int | tuple[int, int] = 0
    classes: tuple[str, ...] = ()
    version: str = "1"
    license: str = "unstated by its makers"
    attribution: str = ""
    homepage: str = ""
    splits: dict[str, int] = field(default_factory=dict)
    summary: str = ""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fields = self.fields or tuple(self.kinds)
        image, label = (next((kind for kind in self.kinds.values() if isinstance(kind, sort)), None) for sort in SORTS)
        # The attributes go before `kinds`, so that dataclasses.replace(info, size=32) changes the kind of the images.
        size = tidy_size(self.size or (image.size if image is not None else 0))
        channels = self.channels or (image.channels if image is not None else 0)
        classes = self.classes or (label.classes if label is not None else ())
        kinds = {name: _kind(name, self.kinds.get(name), channels, size, classes, self.names) for name in fields}
        if not any(isinstance(kind, Image) for kind in kinds.values()):
            channels = size = 0
        for key, value in dict(fields=fields, channels=channels, size=size, classes=classes, kinds=kinds).items():
            object.__setattr__(self, key, value)

    def fields_of(self, kind: str) -> tuple[str, ...]:
        """The fields of a kind: image, text, tokens, audio, frames, label or number."""
        return tuple(name for name, value in self.kinds.items() if value.kind == kind)


def _kind(name: str, given: Kind | None, channels: int, size: int | tuple[int, int], classes: tuple, names: dict):
    if given is None:
        given = {"image": Image(0, 0, 0), "label": Label(()), "text": Text()}.get(name, Number())
    if isinstance(given, Image):
        return Image(channels, *((size, size) if isinstance(size, int) else size))
    if isinstance(given, Label):
        return Label(classes)
    return Number(names.get(name, given.names)) if isinstance(given, Number) else given


FOLDER, SHARDS = "folder:", "shards:"


def check_size(size: int | Sequence[int] | None, smallest: int = 1) -> int | tuple[int, int] | None:
    """The size of images as `zoo.fields.tidy_size` gives it; None for the set's own.

    Raises ZooError unless it is a side in pixels, or [height, width], each from `smallest` to 2048.
    """
    if size is None:
        return None
    sides = list(size) if isinstance(size, (list, tuple)) else [size]
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) > 2 or not sides or not whole or not all(smallest <= side <= LARGEST_SIZE for side in sides):
        raise ZooError(
            f"data.size is {size!r}; it is a whole number of pixels from {smallest} to {LARGEST_SIZE}, or two as in "
            "[height, width]"
        )
    if isinstance(size, (list, tuple)) and len(sides) == 1:
        raise ZooError(f"data.size is {size!r}; a rectangle has two sides, [height, width]")
    return tidy_size(sides[0] if len(sides) == 1 else sides)

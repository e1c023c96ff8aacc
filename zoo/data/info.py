"""What is known of a data set without having it. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from zoo.card import LARGEST_SIZE
from zoo.errors import ZooError, nearest
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
    lacks        field -> why the set doesn't have that field, e.g. {"text": "only 3 of its 10 images have one"}
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
    lacks: dict[str, str] = field(default_factory=dict)

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

    def why_not(self, fields: Iterable[str]) -> str:
        """Why the set has none of these fields, where that is known, to be put into a sentence: " (...)", or ""."""
        return next((f" ({self.lacks[name]})" for name in fields if name in self.lacks), "")


def _kind(name: str, given: Kind | None, channels: int, size: int | tuple[int, int], classes: tuple, names: dict):
    if given is None:
        given = {"image": Image(0, 0, 0), "label": Label(()), "text": Text()}.get(name, Number())
    if isinstance(given, Image):
        return Image(channels, *((size, size) if isinstance(size, int) else size))
    if isinstance(given, Label):
        return Label(classes)
    return Number(names.get(name, given.names)) if isinstance(given, Number) else given


FOLDER, SHARDS = "folder:", "shards:"
WAYS = ("raise", "skip", "replace")  # what can be done about samples that can't be read
LONGEST_SECONDS = 3600.0


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


@dataclass(frozen=True)
class Settings:
    """What a recipe may say about how data are read; the arguments of `zoo.create_data` beside the batch size.

    Raises ZooError for a value that can't be meant.
    """

    size: int | Sequence[int] | None = None
    length: int | None = None
    seconds: float | None = None
    rate: int | None = None
    lines: bool = False
    bad_samples: str = "raise"
    bad_share: float = 0.001

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", check_size(self.size))
        for key, (least, most) in {"length": (1, 1 << 20), "rate": (100, 1_000_000)}.items():
            value = getattr(self, key)
            if value is not None and (type(value) is not int or not least <= value <= most):
                raise ZooError(f"data.{key} is {value!r}; it is a whole number from {least:,} to {most:,}")
        if self.seconds is not None and (
            isinstance(self.seconds, bool)
            or not isinstance(self.seconds, (int, float))
            or not 0 < self.seconds <= LONGEST_SECONDS
        ):
            raise ZooError(f"data.seconds is {self.seconds!r}; it is a number above 0 and at most {LONGEST_SECONDS:,}")
        if self.bad_samples not in WAYS:
            raise ZooError(f"data.bad_samples is {self.bad_samples!r}{nearest(self.bad_samples, WAYS)}")
        if not 0 <= self.bad_share <= 1:
            raise ZooError(f"data.bad_share is {self.bad_share}; it is a share of the samples, from 0 to 1")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """The settings among the values of a recipe's group `data`."""
        return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})

    def applied(self, info: DataInfo) -> DataInfo:
        """The entry of a set as it is when it is read so."""
        kinds = dict(info.kinds)
        for name, kind in kinds.items():
            keys = {"text": ("length",), "audio": ("seconds", "rate")}.get(kind.kind, ())
            asked = {key: getattr(self, key) for key in keys}
            kinds[name] = replace(kind, **{key: value for key, value in asked.items() if value is not None})
        return replace(info, kinds=kinds, size=info.size if self.size is None else self.size)


DEFAULTS = Settings()

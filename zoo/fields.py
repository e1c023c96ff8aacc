"""Kinds of fields: what the values of a data set's field are, and the shape and dtype in which a batch holds them.

Letters: B batch, C H W image, T text length, S audio samples, F frames. Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

ImageSize = int | tuple[int, int]  # side of square images in pixels, or (height, width)
TEXT_LENGTH = 64  # tokens of a text, where nothing else is said


@dataclass(frozen=True)
class Image:
    """Images: uint8 (B, channels, height, width), RGB or grey."""

    channels: int
    height: int
    width: int
    kind: ClassVar[str] = "image"

    @property
    def size(self) -> ImageSize:
        """The side of a square, or (height, width)."""
        return tidy_size((self.height, self.width))


@dataclass(frozen=True)
class Text:
    """Texts: a list of B str; a text backbone reads at most `length` tokens of each."""

    length: int = TEXT_LENGTH
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Tokens:
    """Texts as numbers: int64 (B, length), each in 0..vocabulary - 1; `pad` fills the end of short ones."""

    length: int
    vocabulary: int
    pad: int
    kind: ClassVar[str] = "tokens"


@dataclass(frozen=True)
class Audio:
    """Sounds: float32 (B, samples) in [-1, 1], one channel, `rate` samples a second, all of `seconds`."""

    rate: int
    seconds: float
    kind: ClassVar[str] = "audio"

    @property
    def samples(self) -> int:
        """Length of a row."""
        return max(1, round(self.rate * self.seconds))


@dataclass(frozen=True)
class Frames:
    """Films: uint8 (B, frames, channels, height, width), `rate` frames a second."""

    frames: int
    channels: int
    height: int
    width: int
    rate: float
    kind: ClassVar[str] = "frames"


@dataclass(frozen=True)
class Label:
    """Classes: int64 (B,), each a place in `classes`."""

    classes: tuple[str, ...]
    kind: ClassVar[str] = "label"


@dataclass(frozen=True)
class Number:
    """Other whole numbers: int64 (B,); `names` says what each value is called, where it is known."""

    names: tuple[str, ...] = ()
    kind: ClassVar[str] = "number"


Kind = Image | Text | Tokens | Audio | Frames | Label | Number
KINDS: dict[str, type] = {cls.kind: cls for cls in (Image, Text, Tokens, Audio, Frames, Label, Number)}


def height_width(size: ImageSize | Sequence[int]) -> tuple[int, int]:
    """(height, width) in pixels of a size."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def tidy_size(size: ImageSize | Sequence[int]) -> ImageSize:
    """A size in the form that is compared and kept: an int for squares, else (height, width)."""
    height, width = height_width(size)
    return height if height == width else (height, width)


def plain(kind: Kind) -> dict[str, Any]:
    """A kind as a card holds it: its name, and its values as numbers and lists. Names of classes are left out."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(kind).items()}
    return {"kind": kind.kind} | {key: value for key, value in values.items() if not isinstance(value, list)}


# Keywords that a backbone has from the field it reads, beside the size of images.
GIVEN = {"text": ("length",), "tokens": ("length", "vocabulary"), "audio": ("rate", "seconds")}


def given_to_backbone(kind: Kind | dict[str, Any]) -> dict[str, Any]:
    """Keywords of `create_backbone` that a backbone has from the field it reads, of a kind or of `plain` of one."""
    values = kind if isinstance(kind, dict) else plain(kind)
    if values["kind"] == "image":
        return {"size": tidy_size((values["height"], values["width"]))}
    return {key: values[key] for key in GIVEN.get(values["kind"], ()) if key in values}


def size_name(size: ImageSize | Sequence[int]) -> str:
    """A size as it stands in file names and fingerprints: 64, or 128x32 for height 128 and width 32."""
    return "x".join(map(str, size)) if not isinstance(size := tidy_size(size), int) else str(size)

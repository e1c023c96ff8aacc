"""Ranges as annotations: what a number may be stands where its type stands, in the signature, and is checked before the
task is built.

    def __init__(self, backbone: Backbone, temperature: Positive = 0.2, hidden: Count = 512, flip: Share = 0.5):

One that isn't named here is written out, Annotated[float, Range(0, below=1)]. To a recipe they are all int or float.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from zoo.errors import ZooError


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, or those `above` and `below` what doesn't belong to them; what is None is no
    bound.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:g}"
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)


Count = Annotated[int, Range(1)]  # of what there has to be one of: widths, layers, steps
Natural = Annotated[int, Range(0)]
Several = Annotated[int, Range(2)]  # of what is told apart
Share = Annotated[float, Range(0, 1)]  # chances too
Fraction = Annotated[float, Range(0, below=1)]
Part = Annotated[float, Range(above=0, below=1)]  # with something on both sides
Positive = Annotated[float, Range(above=0)]
Weight = Annotated[float, Range(0)]  # 0 leaves out what it weighs
BinWidth = Annotated[int, Range(1, 100)]  # of colours, in CIELAB; of wider ones too few are left to tell colours by
SMALLEST_PART = 0.05  # the least share of an image's area that a small view of multi_crop shows
LargeCrop = Annotated[float, Range(SMALLEST_PART, 1)]  # and that a large one may be asked to show


def check_ranges(signature: Callable, values: dict[str, Any], group: str) -> None:
    """Raises ZooError, naming group.key, for the first value that isn't in the range that `signature` gives it; of a
    list, for each of its numbers.

    A signature with annotations that can't be read has no ranges (and is refused by signatures.check_signature).
    """
    try:
        hints = typing.get_type_hints(signature, include_extras=True)
    except (NameError, AttributeError, TypeError):
        return
    for key, value in values.items():
        numbers = [
            part for part in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(part, (int, float))
        ]
        for limits in ranges_of(hints.get(key)):
            for number in numbers:
                if number not in limits:
                    raise ZooError(f"{group}.{key} is {number}; it has to be {limits}")


def ranges_of(hint: Any) -> Iterator[Range]:
    """Those in an annotation, also in that of a list or a union."""
    yield from (part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Range))
    for part in typing.get_args(hint):
        yield from ranges_of(part)

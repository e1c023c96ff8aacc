"""Ranges in signatures: every number that a recipe can give a task has one, and it holds before anything is built."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Iterator
from typing import Annotated

import pytest

from zoo.errors import ZooError
from zoo.ranges import Count, Part, Range, Share, check_ranges, ranges_of
from zoo.registry import find_task, list_tasks

BUILT_IN = [entry.name for entry in list_tasks() if entry.origin == "zoo"]


def outside(limits: Range, kind: type) -> Iterator[float]:
    """Numbers just outside a range, and those far from it."""
    for bound, towards in ((limits.least, -1), (limits.most, 1)):
        if bound is not None:
            yield from (bound + towards, bound + towards * 1000)
            if kind is float:
                yield math.nextafter(bound, towards * math.inf)
    for bound, towards in ((limits.above, -1), (limits.below, 1)):
        if bound is not None:
            yield from (bound, bound + towards)
    if kind is float:
        yield math.nan


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_task_refuses_every_number_outside_its_range(name):
    task = find_task(name)
    hints, plain = (typing.get_type_hints(task.__init__, include_extras=extras) for extras in (True, False))
    arguments = {
        key: parameter.default
        for key, parameter in inspect.signature(task.__init__).parameters.items()
        if key not in ("self", "backbone")
    }
    numbers = [key for key in arguments if plain[key] in (int, float)]
    assert numbers
    for key in numbers:
        (limits,) = ranges_of(hints[key])
        assert arguments[key] in limits and (limits.least is not None or limits.above is not None), key
        for value in outside(limits, plain[key]):
            with pytest.raises(ZooError) as found:
                task(None, **{key: plain[key](value)})  # without a backbone: nothing has been built yet
            assert str(found.value) == f"task.{key} is {plain[key](value)}; it has to be {limits}"


def test_a_range_in_words():
    ranges = Range(0, 1), Range(1), Range(above=0), Range(0, below=1), Range(above=0, most=0.9)
    assert [str(limits) for limits in ranges] == [
        "from 0 to 1",
        "at least 1",
        "above 0",
        "at least 0 and below 1",
        "above 0 and at most 0.9",
    ]


def test_lists_and_unions_are_held_to_it_number_by_number():
    def signature(
        sizes: list[Count],
        share: Share | None = None,
        part: Part = 0.5,
        free: float = 0.0,
        odd: Annotated[int, "words"] = 1,
    ):
        pass

    signature.__annotations__ = {
        "sizes": list[Count],
        "share": Share | None,
        "part": Part,
        "free": float,
        "odd": Annotated[int, "words"],
    }
    check_ranges(signature, {"sizes": [1, 2], "share": None, "free": -1e9, "odd": -1, "part": 0.5}, "task")
    for values, sentence in (
        ({"sizes": [1, 0]}, "task.sizes is 0; it has to be at least 1"),
        ({"share": 1.5}, "task.share is 1.5; it has to be from 0 to 1"),
        ({"part": 1.0}, "task.part is 1.0; it has to be above 0 and below 1"),
    ):
        with pytest.raises(ZooError) as found:
            check_ranges(signature, values, "task")
        assert str(found.value) == sentence

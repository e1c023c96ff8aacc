"""Plain values of a backbone's keywords, from recipes and cards that a stranger may have written."""

from __future__ import annotations

from typing import Any

from zoo.errors import ZooError

_SAID = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def check_plain(word: str, value: Any, default: int | float | bool | str, least: float, most: float) -> None:
    """Raises ZooError, naming backbone.`word`, unless the value has the type of the default and, if it is a number,
    lies from `least` to `most`. Whole numbers are numbers, true and false aren't.
    """
    where, kinds = f"backbone.{word}", (int, float) if isinstance(default, float) else (type(default),)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
        raise ZooError(f"{where} is {str(value)[:80]!r}; it has to be {_SAID[type(default)]}, such as {default!r}")
    if not isinstance(value, (str, bool)) and not least <= value <= most:  # NaN isn't either
        raise ZooError(f"{where} is {value}; it has to be from {least:,} to {most:,}")

"""The types that a task's arguments may have, so that a recipe can hold them."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any

from zoo.errors import ZooError

RESERVED = {
    "name": "in a recipe the name of the task",
    "seed": "the seed of a whole run",
    "optim": "the group of the optimizer",
}


def towers_of(task: type) -> dict[str, str]:
    """The backbones of a task: argument of its constructor -> the kind that the backbone reads."""
    return getattr(task, "towers", {"backbone": "image"})


def check_signature(task: type) -> None:
    """A recipe holds plain values, so a task's arguments are plain: int, float, bool, str, Literal, None, and lists and
    unions of these.

    Anything else is refused here with a ZooError. It would be a way for a recipe to name code: jsonargparse imports
    what a Callable or a class is said to be.
    """
    who = f"the task {getattr(task, 'name', '') or task.__name__}"
    try:
        hints = typing.get_type_hints(task.__init__)
    except (NameError, AttributeError, TypeError) as error:
        raise ZooError(f"{who} has an annotation in __init__ that can't be read: {error}") from error
    for name, parameter in list(inspect.signature(task.__init__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ZooError(
                f"{who} takes {str(parameter).split(':')[0]}; its arguments have to be written out, so that a "
                "recipe's can be checked"
            )
        if name in RESERVED:
            raise ZooError(f"{who} has an argument called {name}, which is {RESERVED[name]}; call it something else")
        if name in towers_of(task):
            continue
        if name not in hints:
            raise ZooError(f"{who} doesn't say what type its argument {name} has")
        if not _is_plain(hints[name]):
            raise ZooError(
                f"{who} has an argument {name} of type {hints[name]}; a recipe holds int, float, bool, str, Literal "
                "and lists of these"
            )


def _is_plain(kind: Any) -> bool:
    if typing.get_origin(kind) in (list, tuple, typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(kind) if part is not ...]
        return bool(parts) and all(map(_is_plain, parts))  # typing.List alone is a list of anything
    return kind in (int, float, bool, str, types.NoneType) or typing.get_origin(kind) is typing.Literal


def type_name(kind: Any) -> str:
    """A type as people write it: int, list[float], 32|bf16."""
    if kind is None or kind is types.NoneType:
        return "null"
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(type_name(part) for part in typing.get_args(kind))
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")

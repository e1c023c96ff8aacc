"""JSON, text and files that come from strangers: bounded, checked, and refused in one sentence."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

from zoo.errors import ZooError, nearest

NUMBERS = (int, float)
LARGEST, DEEPEST = 1024 * 1024, 12  # bytes of a JSON text; levels of nesting

COUNTS = (
    "steps",
    "samples_seen",
    "minutes",
    "peak_memory_mb",
    "parameters",
    "size",
    "channels",
    "seeds",
    "images",
    "tolerance",
)


# what could move a terminal's cursor, turn a line around or not be written at all: controls but tab and newline, halves
# of characters
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Missing(ZooError):
    """A file isn't where it was looked for, though the place itself can be reached."""


def read_json(text: str | bytes, where: str, limit: int = LARGEST) -> Any:
    """JSON from a stranger: of bounded size and depth, plain numbers and printable text, no key twice. Raises ZooError
    and nothing else.
    """
    if len(text) > limit:
        raise ZooError(f"{where} is larger than {limit // 1024} KiB, so it isn't what it should be")
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_moderate,
        )
        _check_plain(value)
    except ZooError as error:
        raise ZooError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{where} is not valid JSON: {str(error)[:200]}") from None
    return value


def check_fields(value: Any, fields: dict[str, tuple], where: str) -> None:
    """Raises ZooError unless `value` is a mapping of exactly `fields`, each of one of its types."""
    if not isinstance(value, dict):
        raise ZooError(f"{where} has to be a mapping, and is a {type(value).__name__}")
    for key in value:
        if key not in fields:
            raise ZooError(f"{where}: {key[:80]!r} is not a field here{nearest(key[:80], fields)}")
    for key, kinds in fields.items():
        if key not in value:
            raise ZooError(f"{where} lacks {key}")
        given = value[key]
        if not isinstance(given, kinds) or isinstance(given, bool):
            raise ZooError(
                f"{where}: {key} has to be {' or '.join(kind.__name__ for kind in kinds)}, and is {str(given)[:80]!r}"
            )
        if key in COUNTS and isinstance(given, NUMBERS) and given < 0:
            raise ZooError(f"{where}: {key} is {given}; it can't be below 0")


def _check_plain(value: Any) -> None:
    """Raises ZooError unless every text in `value` can be printed and nothing is nested deeper than DEEPEST."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ZooError(f"it is nested deeper than {DEEPEST} levels")
        below: list = []
        for part in level:
            if isinstance(part, dict):
                below += [*part.keys(), *part.values()]
            elif isinstance(part, list):
                below += part
            elif isinstance(part, str) and UNPRINTABLE.search(part):
                raise ZooError(f"it has control characters in {part[:40]!r}")
        level = below


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ZooError(f"{key[:80]!r} is given twice")
        out[key] = value
    return out


def _no_constant(name: str) -> None:
    raise ZooError(f"{name} is not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_constant(text[:40])


def _moderate(text: str) -> int:
    if len(text.lstrip("-")) > 19:
        raise ZooError(f"{text[:40]} is too large a number")
    return int(text)


def open_plain(root: Path, path: str) -> BinaryIO:
    """Open a file below `root`, where nothing below it may be a link, a pipe or a device. Raises Missing and
    ZooError.
    """
    where = root
    try:
        for name in path.split("/"):
            where = where / name
            mode = os.lstat(where).st_mode
            if stat.S_ISLNK(mode):
                raise ZooError(f"{where} is a link; a checkpoint holds plain files only")
        if not stat.S_ISREG(mode):
            raise ZooError(f"{where} is not a plain file")
        return os.fdopen(os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"{where} is missing") from None
    except OSError as error:
        raise ZooError(f"{where} can't be read: {error.strerror or error}") from error


def printable(text: str) -> str:
    """Text as a card may hold it: what can't be printed becomes a question mark."""
    return UNPRINTABLE.sub("?", text)[:200]

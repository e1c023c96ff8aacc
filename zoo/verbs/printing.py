"""What verbs print, and the amounts that people type."""

from __future__ import annotations

import argparse
import json
from typing import Any

from zoo.errors import ZooError


def amount_of(word: str) -> float | int:
    try:
        return int(word) if word.isdigit() else float(word)
    except ValueError:
        raise ZooError(f"--labels {word!r} is neither a share such as 0.01 nor a number per class such as 5") from None


def say(given: argparse.Namespace, text: str) -> None:
    if not given.json:
        print(text)


def plain(value: Any) -> str:
    """A value as a recipe has it."""
    return value if isinstance(value, str) else json.dumps(value)


def print_rows(given: argparse.Namespace, rows: list[dict]) -> None:
    """Columns as wide as they need to be, under their names; `about` and what is wrong run on at the end."""
    if given.json:
        return
    if not rows:
        print("  none")
        return
    shown = [
        key
        for key in rows[0]
        if key not in ("about", "needs", "uses_labels", "problem") and not isinstance(rows[0][key], (dict, list))
    ]
    cells = [[str("" if row[key] is None else row[key]) for key in shown] + [_remarks(row)] for row in rows]
    if len(shown) > 1:
        cells.insert(0, [*shown, "about" if "about" in rows[0] else ""])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1] + [0]
    for line in cells:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _remarks(row: dict) -> str:
    parts = [
        row.get("about") or "",
        "(uses labels)" if row.get("uses_labels") else "",
        f"BROKEN: {row['problem']}" if row.get("problem") else "",
    ]
    return " ".join(part for part in parts if part)

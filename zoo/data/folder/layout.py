"""What the names of a folder's files say: classes, labels and splits."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from zoo.data.folder.cache import shown
from zoo.errors import ZooError

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Layout:
    """What the folder structure says. `labels` is None for unlabelled samples, and `why` then says why."""

    classes: tuple[str, ...]
    labels: list[int] | None
    splits: dict[str, list[int]]
    why: str = ""


def layout_of(files: list[str], root: Path, keys: list[str] | None = None) -> Layout:
    """The layout of rows that lie in these files (paths below `root`, with slashes). Splits that no folder says are
    drawn by a hash of the rows' `keys`, by default the paths.
    """
    parts = [file.split("/") for file in files]
    tops = {part[0] for part in parts if len(part) > 1}
    given = {SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    apart = "train" in given and (len(given) > 1 or (len(tops) == 1 and all(len(part) > 1 for part in parts)))
    if apart:
        for file, part in zip(files, parts):
            if len(part) == 1 or part[0].lower() not in SPLITS:
                raise ZooError(
                    f"{shown(root)} has folders for splits ({', '.join(sorted(given))}), but "
                    f"{shown(file)} lies in none of them; move it into one, or away"
                )
    split_of = [SPLITS[part[0].lower()] if apart else "train" for part in parts]
    inner = [part[1:] if apart else part for part in parts]

    flat = next((file for file, part in zip(files, inner) if len(part) == 1), None)
    classes = tuple(sorted({part[0] for part in inner if len(part) > 1}))
    labels, why = None, ""
    if flat is not None:
        why = f"{shown(flat)} lies in no class folder"
    elif len(classes) < 2:
        why = f"{shown(classes[0])} is the only folder"
    else:
        number = {name: k for k, name in enumerate(classes)}
        labels = [number[part[0]] for part in inner]

    pool = [row for row, split in enumerate(split_of) if split == "train"]
    absent = [split for split in ("validation", "test") if split not in given or not apart]
    for row, split in carve(keys or files, pool, labels or [0] * len(files), absent).items():
        split_of[row] = split
    return Layout(tuple(map(shown, classes)) if labels is not None else (), labels, rows_of(split_of), why)


def rows_of(split_of: list[str]) -> dict[str, list[int]]:
    """The rows of each split."""
    splits: dict[str, list[int]] = {name: [] for name in NAMES}
    for row, split in enumerate(split_of):
        splits[split].append(row)
    return splits


def carve(keys: list[str], pool: list[int], groups: list[int], names: list[str]) -> dict[int, str]:
    """The split of each row of `pool`: a tenth for each of `names`, the rest train, by a hash of the row's key.

    The lowest draw of a class goes to train if the class has none there; the highest that can be spared goes
    to a split that would be empty. Both only bite in small folders.
    """
    draw = {
        row: int.from_bytes(hashlib.blake2b(os.fsencode(keys[row]), digest_size=8).digest(), "little") for row in pool
    }
    tenths = dict(zip((9, 8), reversed(names)))
    share = {row: tenths.get(draw[row] * 10 >> 64, "train") for row in pool}
    present = {groups[row] for row in pool if share[row] == "train"}
    for group in {groups[row] for row in pool} - present:
        share[min((row for row in pool if groups[row] == group), key=draw.get)] = "train"
    for name in names:
        if name not in share.values():
            keep = {row: (share[row], groups[row] if share[row] == "train" else None) for row in pool}
            count = Counter(keep.values())
            spare = [row for row in pool if count[keep[row]] > 1]
            if spare:
                share[max(spare, key=draw.get)] = name
    return share

"""Which files below a folder are samples, or parts of samples."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from zoo.data.folder.cache import File, shown
from zoo.data.media import sound, text
from zoo.errors import ZooError, nearest

IGNORED = ("__MACOSX",)  # beside everything whose name begins with a dot
TABLES = frozenset((".csv", ".tsv", ".jsonl"))


class Content(NamedTuple):
    """The files below a folder, sorted by path, by what they may be; and the number of other files by extension."""

    root: Path
    images: list[File]
    sounds: list[File]
    texts: list[File]
    tables: list[File]
    others: Counter


def content_of(path: str | Path) -> Content:
    """What lies below a folder. Raises ZooError for a path that is no folder, and for a folder that can't be listed."""
    from zoo.data.media import decode

    plain = str(path).removeprefix("folder:")
    if not plain.strip():
        raise ZooError("folder: needs a path, as in folder:~/pictures")
    root = Path(os.path.expanduser(plain)).absolute()
    if not os.path.exists(root):
        above = root.parent
        listed = os.scandir(above) if os.path.isdir(above) and os.access(above, os.R_OK) else ()
        beside = [shown(entry.name) for entry in listed if entry.is_dir()]
        raise ZooError(f"there is no folder {shown(root)}{nearest(root.name, beside)}")
    if not os.path.isdir(root):
        raise ZooError(f"{shown(root)} is a file; give the folder that holds the images")
    root = root.resolve()
    sorts = (decode.EXTENSIONS, sound.EXTENSIONS, text.EXTENSIONS, TABLES)
    found, others = _scan(root, {kind: place for place, kinds in enumerate(sorts) for kind in kinds})
    return Content(root, *found, others)


def stem(path: str) -> str:
    """A path without its last extension: what the files of one sample share."""
    return os.path.splitext(path)[0]


def beside(files: list[File], others: list[File]) -> list[File | None]:
    """For each of `files` the one of `others` that has its stem."""
    by_stem = {stem(other.path): other for other in others}
    return [by_stem.get(stem(file.path)) for file in files]


def _scan(root: Path, place_of: dict[str, int]) -> tuple[list[list[File]], Counter]:
    """The files below `root` whose extensions have a place, sorted by path, one list for each place; and the number of
    other files by extension.

    Linked folders are followed once the real ones are through, and each real folder is entered once: so a
    link back into the folder, or a loop of links, adds nothing.
    """
    found: list[list[File]] = [[] for _ in range(max(place_of.values()) + 1)]
    others, seen, folders, links = Counter(), set(), [(root, "")], []
    seen.update(_identity(above) for above in root.parents)
    while folders or links:
        folder, prefix = folders.pop() if folders else links.pop()
        if (identity := _identity(folder)) in seen:
            continue
        seen.add(identity)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise ZooError(
                f"the folder {shown(folder)} can't be listed: {error.strerror}; make it readable or move it away"
            ) from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name in IGNORED:
                continue
            kind = os.path.splitext(entry.name)[1].lower()
            try:
                status = entry.stat()
            except OSError as error:  # a link to nowhere; what becomes of it is said where it is decoded
                if kind in place_of and error.errno != errno.ELOOP:
                    found[place_of[kind]].append(File(prefix + entry.name, 0, 0))
                continue
            if stat.S_ISDIR(status.st_mode):
                below = (Path(entry.path), f"{prefix}{entry.name}/")
                (links if entry.is_symlink() else folders).append(below)
            elif stat.S_ISREG(status.st_mode) and kind in place_of:
                changed = max(status.st_mtime_ns, status.st_ctime_ns)
                found[place_of[kind]].append(File(prefix + entry.name, status.st_size, changed))
            else:
                others[kind] += 1
        links.sort(key=lambda link: link[1], reverse=True)
    return [sorted(files) for files in found], others


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino

"""What takes the place of pictures in shards that can't be read: each time the same others, whichever process asks, and
when.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from zoo.data.folder.cache import bad_lines, shown
from zoo.data.media.decode import Unreadable
from zoo.data.shards.index import Index
from zoo.errors import ZooError
from zoo.paths import write_text


class Spares:
    """For each row whose picture can't be read, the next one (after the last comes the first) of the same split and
    class that can.

    That is a function of the shards alone, so a resumed run and another number of processes change nothing, and each
    batch keeps its rows and labels.

    rows     the row whose picture stands in, of each bad row that was met
    bad      {path, byte, reason, replaced_by} of each, the shard's path being below the folder that holds them all
    file     where `bad` is kept too, which all processes of a run write, and those that resume it; None for nowhere
    """

    def __init__(self, index: Index, share: float):
        self.index, self.share = index, share
        self.rows: dict[int, int] = {}
        self.bad: list[dict] = []
        self.file: Path | None = None
        self._root = os.path.commonpath([shard.parent for shard in index.shards])
        self._splits = [index.column(name) for name in index.splits]
        self._shard = index.column("shard")
        self._offset = index.column("offset" if "image" in index.fields else "audio_offset")
        self._label = index.column("label") if "label" in index.fields else None
        self._lock = threading.Lock()

    def picture(self, row: int, read: Callable[[int], np.ndarray]) -> np.ndarray:
        """The picture of `row` or, where `read` raises Unreadable, of the row that stands in for it.

        Raises ZooError when more than the share of all pictures can't be read, and when a class has no other in the
        split.
        """
        try:
            return read(self.rows.get(row, row))
        except Unreadable as error:
            with self._lock:  # bad ones are few
                return self._replaced(row, error, read)

    def _replaced(self, row: int, error: Unreadable, read: Callable[[int], np.ndarray]) -> np.ndarray:
        bad = {row: error}
        for other in self._alike(row):
            self._check(self.bad + self._entries(bad, None))
            other = self.rows.get(other, other)
            try:
                picture = read(other)
            except Unreadable as another:
                bad[other] = another
                continue
            self._note(self._entries(bad, other))
            self.rows |= dict.fromkeys(bad, other)
            return picture
        raise ZooError(f"{error}; and its split has no other of its class to replace it")

    def _alike(self, row: int) -> Iterator[int]:
        for rows in self._splits:
            at = int(np.searchsorted(rows, row))
            if at < len(rows) and rows[at] == row:
                for other in map(int, itertools.chain(rows[at + 1 :], rows[:at])):
                    if self._label is None or self._label[other] == self._label[row]:
                        yield other

    def _entries(self, bad: dict[int, Unreadable], other: int | None) -> list[dict]:
        return [
            self._place(row) | {"reason": error.reason, "replaced_by": None if other is None else self._place(other)}
            for row, error in bad.items()
        ]

    def _place(self, row: int) -> dict:
        return {
            "path": shown(os.path.relpath(self.index.shards[self._shard[row]], self._root)),
            "byte": int(self._offset[row]),
        }

    def _note(self, entries: list[dict]) -> None:
        from filelock import FileLock

        with FileLock(self.index.folder.parent / f".{self.index.folder.name}.lock"):
            if (
                self.file is not None and self.file.is_file()
            ):  # what the other processes have met, and those before a resume
                self.bad[:] = map(json.loads, self.file.read_text(encoding="utf-8").splitlines())
            known = {(entry["path"], entry["byte"]) for entry in self.bad}
            fresh = [entry for entry in entries if (entry["path"], entry["byte"]) not in known]
            self._check(self.bad + fresh)
            if fresh and not self.bad:
                where = f"{self.file} names each" if self.file else "`dataset.bad` names each"
                print(
                    f"the image at byte {fresh[0]['byte']:,} of {fresh[0]['path']} can't be read "
                    f"({fresh[0]['reason']}) and is replaced; "
                    f"{where} of which this is so",
                    file=sys.stderr,
                    flush=True,
                )
            self.bad += fresh
            if fresh and self.file is not None:
                write_text(self.file, bad_lines(self.bad))

    def _check(self, bad: list[dict]) -> None:
        count = len(self._shard)
        if len(bad) > self.share * count:
            last = bad[-1]
            raise ZooError(
                f"{len(bad):,} of the {count:,} images in the shards of {shown(self._root)} can't be read, and "
                f"data.bad_share {self.share:g} "
                f"allows {int(self.share * count):,}; mend them, or allow more; the last is at byte {last['byte']:,} "
                f"of {last['path']} "
                f"({last['reason']})"
            )

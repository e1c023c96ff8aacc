"""`shards:PATH`: a data set larger than the memory, in tar files that are read where they lie.

An index says where each picture is (see `shard_index`), so any row is read and decoded when it is asked for, and a run
is resumed by counting, as with a set in memory: nothing is replayed and no state of a reader is kept. What differs is
the order in training. A permutation of all rows would read the disk all over the place; here blocks of neighbouring
rows are permuted, each process takes a stretch of them for itself, and rows are mixed within windows of it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.columns import Column
from zoo.data.dataset import Dataset
from zoo.data.folder.cache import BAD_SAMPLES, PATIENCE, shown
from zoo.data.folder.folder import DEFAULT_SIZE
from zoo.data.info import DEFAULTS, DataInfo, Settings, check_size
from zoo.data.media.decode import decode_bytes
from zoo.data.media.threads import Threads
from zoo.data.shards.index import VERSION, Index, indexed
from zoo.data.shards.spares import Spares
from zoo.errors import ZooError
from zoo.fields import ImageSize, height_width

AHEAD = 2  # batches that are decoded while one is trained on
AT_ONCE = 16  # pictures that a thread takes


def shards_info(path: str, settings: Settings = DEFAULTS) -> DataInfo:
    """What `shards:PATH` holds. The tars' headers are read once. Raises ZooError as `load_shards` does, but for
    unreadable pictures.
    """
    return settings.applied(_info(path, indexed(path)))


def load_shards(
    path: str,
    size: int | Sequence[int] | None = None,
    bad_samples: str = "raise",
    bad_share: float = 0.001,
    **more: Any,
) -> Dataset:
    """The samples of the .tar files below a folder, or of those that a pattern names (a-*.tar, or, with the extra
    webdataset, a-{00..99}.tar), in the order of names and members.

    `image` decodes rows when they are indexed: uint8 (B, 3, height, width), each made as `folder:` makes them (default
    size 64). `label` int64 (n,) and `text` are fields where every sample has them. All that is kept of them lies in
    memory-mapped files below `ZOO_HOME`/cache, so that memory doesn't grow with the set.

    Splits: shards whose name or folder begins with train, val or test. Without such names, and for a split that is
    absent, a tenth of the rest, at most 10,000 samples, by a hash of shard and key. Class names are the lines of
    classes.txt beside the shards, else numbers.

    Pictures aren't decoded beforehand (`zoo data shard` writes only good ones). One that can't be read is, when it is
    asked for, an error that names it; or, where `bad_samples` is `replace`, gives way to the next good one of the same
    split and class, text included, for at most `bad_share` of all samples. Those that were met are listed in `bad` of
    what is returned, and a run adds them to its bad_samples.jsonl.

    Raises ZooError for a path without shards, a shard that is damaged or cut short, samples whose fields differ, a bad
    size, and `skip`: without having decoded all there is no telling how many batches would be left.
    """
    settings = Settings(size=size, bad_samples=bad_samples, bad_share=bad_share, **more)
    if bad_samples == "skip":
        raise ZooError(
            "data.bad_samples is 'skip', and shards aren't decoded beforehand, so nobody knows how many batches that "
            "would leave, which all "
            "processes have to agree on; set it to replace, or make shards with `zoo data shard`, which takes only "
            "pictures that can be read"
        )
    size = check_size(size, smallest=4) or DEFAULT_SIZE
    index = indexed(path)
    spares = Spares(index, bad_share) if bad_samples == "replace" else None
    fields: dict = {"image": Pictures(index, size, spares)}
    if "label" in index.fields:
        fields["label"] = torch.from_numpy(index.column("label"))
    if "text" in index.fields:
        fields["text"] = Texts(index, spares)
    splits = {name: torch.from_numpy(index.column(name)) for name in index.splits}
    return Dataset(
        settings.applied(replace(_info(path, index), size=size)),
        fields,
        splits,
        f"{index.fingerprint[:56]}{_size_code(size)}",
        spares.bad if spares else [],
    )


def _size_code(size: ImageSize) -> str:
    """Eight hexadecimal digits for a size: the side of a square, or four digits each for height and width."""
    return f"{size:08x}" if isinstance(size, int) else f"{size[0]:04x}{size[1]:04x}"


def _info(path: str, index: Index) -> DataInfo:
    kind = f"{len(index.classes):,} classes" if index.classes else "unlabelled"
    summary = f"{sum(index.counts):,} images in {len(index.shards):,} shards, {kind}"
    return DataInfo(
        name=f"shards:{str(path).removeprefix('shards:')}",
        fields=index.fields,
        channels=3,
        size=DEFAULT_SIZE,
        classes=index.classes,
        version=VERSION,
        license="unknown",
        attribution="",
        homepage="",
        splits=dict(index.splits),
        summary=summary,
    )


class Texts(Column):
    """Text of each row, in a file; where a picture was replaced, that of the picture."""

    def __init__(self, index: Index, spares: Spares | None = None):
        self.path, self.end, self.spares = index.folder / "text.bin", index.column("text_end"), spares

    def __len__(self) -> int:
        return len(self.end)

    def take(self, rows: Tensor) -> list[str]:
        return [self[row] for row in rows.tolist()]

    def __getitem__(self, row: int) -> str:
        row = self.spares.rows.get(row, row) if self.spares else row
        start = int(self.end[row - 1]) if row else 0
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), int(self.end[row]) - start, start).decode()


class Pictures(Column):
    """Looks like a uint8 tensor (n, 3, height, width) that can only be indexed by rows. Rows are read and decoded, in
    threads, when they are asked for.
    """

    dtype, device = torch.uint8, torch.device("cpu")
    near = False  # neighbouring rows lie in one tar

    def __init__(self, index: Index, size: ImageSize, spares: Spares | None = None):
        self.shards, self.size, self.spares = index.shards, size, spares
        self._shard, self._offset, self._bytes = (index.column(name) for name in ("shard", "offset", "size"))

    def follow(self, folder: Path) -> None:
        if self.spares is not None:
            self.spares.file = folder / BAD_SAMPLES

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, *height_width(self.size)))

    def __len__(self) -> int:
        return len(self._shard)

    def __getitem__(self, rows: Tensor | slice | int) -> Tensor:
        if isinstance(rows, int):
            return self[torch.tensor([rows])][0]
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)))
        return self._answer(self._ask(rows))

    def take(self, rows: Tensor) -> Tensor:
        return self[rows]

    def ahead(self, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows, their images) of each part, the next ones being decoded meanwhile."""
        waiting: deque = deque()
        try:
            for rows in parts:
                waiting.append((rows, self._ask(rows)))
                if len(waiting) > AHEAD:
                    rows, asked = waiting.popleft()
                    yield rows, self._answer(asked)
            while waiting:
                rows, asked = waiting.popleft()
                yield rows, self._answer(asked)
        finally:
            for _, asked in waiting:
                for future in asked:
                    future.cancel()

    @cached_property
    def _threads(self) -> Threads:
        return Threads(min(8, os.cpu_count() or 1), "shards")

    def _ask(self, rows: Tensor) -> list[Future]:
        rows = rows.cpu().numpy()
        if len(rows) and not (0 <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"rows are numbered from 0 to {len(self) - 1}")
        return [self._threads.submit(self._decoded, rows[k : k + AT_ONCE]) for k in range(0, len(rows), AT_ONCE)]

    def _answer(self, asked: list[Future]) -> Tensor:
        try:
            parts = [future.result(timeout=PATIENCE) for future in asked]
        except TimeoutError:
            raise ZooError(
                f"the shards in {shown(self.shards[0].parent)} gave no picture for {PATIENCE:g} s; see to the disk or "
                "server that they "
                "lie on"
            ) from None
        return torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0, *self.shape[1:], dtype=torch.uint8)

    def _decoded(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for place, row in enumerate(rows.tolist()):
            out[place] = self._picture(row) if self.spares is None else self.spares.picture(row, self._picture)
        return out

    def _picture(self, row: int) -> np.ndarray:
        shard, offset, size = self.shards[self._shard[row]], int(self._offset[row]), int(self._bytes[row])
        return decode_bytes(self._read(shard, offset, size), self.size, f"at byte {offset:,} of {shown(shard)}")

    @staticmethod
    def _read(shard: Path, offset: int, size: int) -> bytes:
        try:
            with open(shard, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise ZooError(f"the shard {shown(shard)} can't be read: {error.strerror or error}") from error
        if len(data) != size:
            raise ZooError(f"the shard {shown(shard)} has become shorter since it was indexed; get or make it again")
        return data

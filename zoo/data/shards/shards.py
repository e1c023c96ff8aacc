"""`shards:PATH`: a data set larger than the memory, in tar files that are read where they lie.

An index says where each picture is (see `shard_index`), so any row is read and decoded when it is asked for, and a run
is resumed by counting, as with a set in memory: nothing is replayed and no state of a reader is kept. What differs is
the order in training. A permutation of all rows would read the disk all over the place; here blocks of neighbouring
rows are permuted, each process takes a stretch of them for itself, and rows are mixed within windows of it.
"""

from __future__ import annotations

import hashlib
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
from zoo.data.folder.sounds import common_audio
from zoo.data.info import DEFAULTS, LONGEST_SECONDS, DataInfo, Settings, check_size
from zoo.data.media import sound
from zoo.data.media.decode import decode_bytes
from zoo.data.media.threads import Threads
from zoo.data.shards.index import VERSION, Index, indexed
from zoo.data.shards.spares import Spares
from zoo.errors import ZooError
from zoo.fields import Audio, ImageSize, height_width

AHEAD = 2  # batches that are decoded while one is trained on
AT_ONCE = 16  # pictures that a thread takes


def shards_info(path: str, settings: Settings = DEFAULTS) -> DataInfo:
    """What `shards:PATH` holds. The tars' headers are read once. Raises ZooError as `load_shards` does, but for
    unreadable pictures.
    """
    return settings.applied(_info(path, indexed(path), settings))


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
    size 64). `audio` does the same: float32 (B, samples). `label` is int64 (n,), `text` a column of str. A sample may
    lack the image; those of the four that all samples have are the fields. All that is kept of them lies in
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
    info = replace(_info(path, index, settings), size=size) if "image" in index.fields else _info(path, index, settings)
    fields: dict = {"image": Pictures(index, size, spares)} if "image" in index.fields else {}
    if "audio" in index.fields:
        fields["audio"] = Recordings(index, info.kinds["audio"], spares)
    if "label" in index.fields:
        fields["label"] = torch.from_numpy(index.column("label"))
    if "text" in index.fields:
        fields["text"] = Texts(index, spares)
    splits = {name: torch.from_numpy(index.column(name)) for name in index.splits}
    return Dataset(
        settings.applied(info),
        fields,
        splits,
        _fingerprint(index, info),
        spares.bad if spares else [],
    )


def _fingerprint(index: Index, info: DataInfo) -> str:
    """The index's, and what the settings make of the samples: the last eight digits say the size of the images."""
    mark = index.fingerprint
    if "audio" in info.kinds:
        audio = info.kinds["audio"]
        mark = hashlib.sha256(f"{mark} {audio.rate} {audio.samples}".encode()).hexdigest()
    if "image" not in info.kinds:
        return mark
    square = isinstance(info.size, int)
    return mark[:56] + (f"{info.size:08x}" if square else f"{info.size[0]:04x}{info.size[1]:04x}")


def _info(path: str, index: Index, settings: Settings) -> DataInfo:
    kind = f"{len(index.classes):,} classes" if index.classes else "unlabelled"
    noun = {"image": "images", "audio": "sounds"}.get(index.fields[0], "texts")
    return DataInfo(
        name=f"shards:{str(path).removeprefix('shards:')}",
        fields=index.fields,
        channels=3,
        size=DEFAULT_SIZE,
        classes=index.classes,
        version=VERSION,
        license="unknown",
        splits=dict(index.splits),
        summary=f"{sum(index.counts):,} {noun} in {len(index.shards):,} shards, {kind}",
        kinds={"audio": _audio(index, settings)} if "audio" in index.fields else {},
    )


def _audio(index: Index, settings: Settings) -> Audio:
    """Rate and length of the sounds. Raises ZooError where they have several rates and the settings name none."""
    rates, samples = index.column("audio_rate"), index.column("audio_samples")
    middle = min(float(np.median(samples / rates)), LONGEST_SECONDS)
    odd = int(np.argmax(rates != rates[0]))  # 0 where all are alike
    shard, offset = index.column("shard"), index.column("audio_offset")
    some = [
        (f"at byte {int(offset[row]):,} of {index.shards[shard[row]]}", int(rates[row]), int(samples[row]))
        for row in (0, odd)
    ]
    return common_audio(some, replace(settings, seconds=settings.seconds or middle), shown(index.shards[0].parent))


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


class Members(Column):
    """Looks like a tensor that can only be indexed by rows. Rows are read and decoded, in threads, when they are asked
    for.
    """

    device = torch.device("cpu")
    near = False  # neighbouring rows lie in one tar
    noun = "picture"

    def __init__(self, index: Index, columns: tuple[str, str], shape: tuple[int, ...], spares: Spares | None = None):
        self.shards, self.spares, self._row_shape = index.shards, spares, shape
        self._shard, self._offset, self._bytes = (index.column(name) for name in ("shard", *columns))

    stored: Any = np.uint8
    dtype = torch.uint8

    def given(self, rows: Tensor) -> Tensor:
        """Decoded rows as a batch holds them."""
        return rows

    def decoded(self, data: bytes, where: str) -> np.ndarray:
        """The row that a member of a tar holds. Raises Unreadable."""
        raise NotImplementedError

    def follow(self, folder: Path) -> None:
        if self.spares is not None:
            self.spares.file = folder / BAD_SAMPLES

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self._row_shape))

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
                f"the shards in {shown(self.shards[0].parent)} gave no {self.noun} for {PATIENCE:g} s; see to the disk "
                "or server that they lie on"
            ) from None
        rows = np.concatenate(parts) if parts else np.empty((0, *self._row_shape), self.stored)
        return self.given(torch.from_numpy(rows))

    def _decoded(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self._row_shape), self.stored)
        for place, row in enumerate(rows.tolist()):
            out[place] = self._row(row) if self.spares is None else self.spares.picture(row, self._row)
        return out

    def _row(self, row: int) -> np.ndarray:
        shard, offset, size = self.shards[self._shard[row]], int(self._offset[row]), int(self._bytes[row])
        return self.decoded(self._read(shard, offset, size), f"at byte {offset:,} of {shown(shard)}")

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


class Pictures(Members):
    """Images: uint8 (n, 3, height, width)."""

    def __init__(self, index: Index, size: ImageSize, spares: Spares | None = None):
        super().__init__(index, ("offset", "size"), (3, *height_width(size)), spares)
        self.size = size

    def decoded(self, data: bytes, where: str) -> np.ndarray:
        return decode_bytes(data, self.size, where)


class Recordings(Members):
    """Sounds: float32 (n, samples). Beside an image, the sound of a row follows the image that stands in for it."""

    noun, stored, dtype = "sound", np.int16, torch.float32

    def __init__(self, index: Index, audio: Audio, spares: Spares | None = None):
        super().__init__(index, ("audio_offset", "audio_size"), (audio.samples,), spares)
        self.audio, self._beside = audio, "image" in index.fields

    def given(self, rows: Tensor) -> Tensor:
        return rows.float() / sound.FULL

    def decoded(self, data: bytes, where: str) -> np.ndarray:
        return sound.decode_bytes(data, self.audio, where)

    def _row(self, row: int) -> np.ndarray:
        return super()._row(self.spares.rows.get(row, row) if self._beside and self.spares else row)

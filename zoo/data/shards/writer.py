"""A folder of pictures -> tar shards, for sets whose files are too many for a file system or too far away from the
machine that trains.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from zoo import paths
from zoo.data.folder.cache import decoded, shown
from zoo.data.folder.folder import look
from zoo.data.media.decode import Unreadable, decode
from zoo.errors import ZooError

NAMES = {"train": "train", "validation": "val", "test": "test"}
SMALLEST = 4  # pixels; enough to see whether a picture can be read to its end


def write_shards(folder: str | Path, out: str | Path, per_shard: int = 1000) -> Path:
    """Write train-000000.tar, ..., val-..., test-... and classes.txt into `out`, and return it.

    Splits and labels are those that `folder:` sees. The files' bytes are kept as they are, in an order drawn by a hash
    of their paths, so that neighbours aren't alike. Equal folders give equal bytes.

    Args:
        folder: the pictures.
        out: a folder that doesn't exist, or is empty.
        per_shard: pictures of a shard, at least 1.

    Raises ZooError for a folder that `folder:` refuses, the first picture that can't be read, an `out` that holds
    something, and a full disk. Nothing half is left.
    """
    if isinstance(per_shard, bool) or not isinstance(per_shard, int) or per_shard < 1:
        raise ZooError(f"--per-shard is {per_shard!r}; it is a whole number of pictures, at least 1")
    root, files, layout = look(folder)
    out = paths.expanded(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ZooError(f"{shown(out)} exists and isn't an empty folder; give another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part"))
        try:
            for split, rows in layout.splits.items():
                rows = iter(sorted(rows, key=lambda row: hashlib.sha256(os.fsencode(files[row].path)).digest()))
                for number, some in enumerate(iter(lambda: list(islice(rows, per_shard)), [])):
                    shard = part / f"{NAMES[split]}-{number:06d}.tar"
                    labels = None if layout.labels is None else [layout.labels[row] for row in some]
                    _write(shard, [root / files[row].path for row in some], labels, number * per_shard)
            if layout.labels is not None:
                paths.write_text(
                    part / "classes.txt", "".join(f"{' '.join(name.split())}\n" for name in layout.classes)
                )
            os.chmod(part, 0o755)
            os.replace(part, out)
            paths.sync_folder(out.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise paths.explain(error, out, sum(file.size for file in files)) from error
    return out


def _write(shard: Path, files: list[Path], labels: list[int] | None, first: int) -> None:
    with open(shard, "xb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for place, (path, data) in enumerate(_good(files)):
                _add(tar, f"{first + place:09d}{path.suffix.lower()}", data)
                if labels is not None:
                    _add(tar, f"{first + place:09d}.cls", b"%d" % labels[place])
        file.flush()
        os.fsync(file.fileno())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _good(files: list[Path]) -> Iterator[tuple[Path, bytes]]:
    """Path and bytes of each file, once it has been decoded."""
    for path, result in zip(files, decoded(files, lambda path: decode(path, SMALLEST)), strict=True):
        if isinstance(result, Unreadable):
            raise result
        try:
            yield path, path.read_bytes()
        except OSError as error:
            raise ZooError(f"the image {shown(path)} can't be read ({error.strerror}); remove it or mend it") from error

"""`folder:PATH`: anybody's own pictures as a data set, with nothing to set up.

Every image below PATH counts, whatever its size and format. What the folders say is taken as meant: a class
per folder, or train/, validation/ and test/. The pixels are decoded once, into a memory-mapped cache that is
made anew when the folder changes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo import paths
from zoo.errors import ZooError, nearest

if TYPE_CHECKING:
    import numpy as np

    from zoo.data.datasets import DataInfo, Dataset

VERSION = "1"               # of what decoding and splitting give; part of every cache's name and fingerprint
DEFAULT_SIZE = 64
IGNORED = ("__MACOSX",)     # beside everything whose name begins with a dot
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation",
          "test": "test"}
NAMED_AT_MOST = 5           # unreadable images that one sentence names


class File(NamedTuple):
    """An image file: its path below the folder, with slashes, its bytes, and when it was changed (ns)."""

    path: str
    size: int
    time: int


@dataclass(frozen=True)
class Layout:
    """What the folder structure says. `labels` is None for unlabelled images, and `why` then says why."""

    classes: tuple[str, ...]
    labels: list[int] | None
    splits: dict[str, list[int]]
    why: str = ""


def folder_info(path: str | Path) -> DataInfo:
    """What `folder:PATH` holds, from the names of its files alone: nothing is decoded.

    Every image is (3, 64, 64) unless `data.size` says otherwise: grey ones are repeated into three channels,
    so that a folder that gains its first colour image doesn't change shape. Raises ZooError as `load_folder`
    does, but for unreadable images.
    """
    _, files, layout = _look(path)
    return _info(path, files, layout, DEFAULT_SIZE)


def load_folder(path: str | Path, size: int | None = None) -> Dataset:
    """The images below `path`, sorted: `image` uint8 (n, 3, size, size) and, if labelled, `label` int64 (n,).

    Images are turned as their EXIF data say, laid on white where transparent, and scaled to 8 bits; the short
    side is resized to `size` (64) with antialiasing and the centre kept. Of an animation, the first frame is
    taken.

    Labels: when every image lies in one of two or more subfolders, the first folder on its way is its class;
    else there are none. Splits: top folders train/ with val/, valid/, validation/ or test/ are the splits.
    Otherwise, and for one that is absent, a tenth of the training images each, by a hash of the path, so that
    a new image moves no other; except that each class keeps an image in train, and that no split stays empty
    where images can be spared.

    `image` lies in a private memory map of a file below `ZOO_HOME`/cache: only rows that are indexed are
    read, and writing to it changes no file. Memory doesn't grow with the folder. Safe to call in several
    processes at once.

    Raises ZooError for a folder that is absent, is a file, or holds fewer than two images, for images that
    can't be read (naming them), and for a cache that can't be written.
    """
    import torch

    from zoo.data.datasets import Dataset

    size = DEFAULT_SIZE if size is None else size
    if isinstance(size, bool) or not isinstance(size, int) or not 4 <= size <= 2048:
        raise ZooError(f"data.size is {size!r}; for a folder it is a whole number of pixels from 4 to 2048")
    root, files, layout = _look(path)
    images, fingerprint = _cached(root, files, size)
    fields = {"image": torch.from_numpy(images)}
    if layout.labels is not None:
        fields["label"] = torch.tensor(layout.labels, dtype=torch.int64)
    splits = {name: torch.tensor(rows, dtype=torch.int64) for name, rows in layout.splits.items()}
    return Dataset(_info(path, files, layout, size), fields, splits, fingerprint)


def _info(path: str | Path, files: list[File], layout: Layout, size: int) -> DataInfo:
    from zoo.data.datasets import DataInfo

    plain, labelled = str(path).removeprefix("folder:"), layout.labels is not None
    kind = f"{len(layout.classes)} classes, one per folder" if labelled else f"unlabelled: {layout.why}"
    return DataInfo(name=f"folder:{plain}", fields=("image", "label") if labelled else ("image",), channels=3,
                    size=size, classes=layout.classes, version=VERSION, license="unknown", attribution="",
                    homepage="", splits={name: len(rows) for name, rows in layout.splits.items()},
                    summary=f"{len(files):,} images, {kind}")


def _look(path: str | Path) -> tuple[Path, list[File], Layout]:
    from zoo.data.decode import EXTENSIONS

    plain = str(path).removeprefix("folder:")
    if not plain.strip():
        raise ZooError("folder: needs a path, as in folder:~/pictures")
    root = Path(os.path.expanduser(plain)).absolute()
    if not os.path.exists(root):
        above = root.parent
        listed = os.scandir(above) if os.path.isdir(above) and os.access(above, os.R_OK) else ()
        beside = [_shown(entry.name) for entry in listed if entry.is_dir()]
        raise ZooError(f"there is no folder {_shown(root)}{nearest(root.name, beside)}")
    if not os.path.isdir(root):
        raise ZooError(f"{_shown(root)} is a file; give the folder that holds the images")
    root = root.resolve()
    files, others = _scan(root, EXTENSIONS)
    if len(files) < 2:
        rest = ", ".join(f"{count:,} {kind or 'without extension'}" for kind, count in others.most_common(3))
        rest = f"; other files there: {rest}" if rest else ""
        few = "one image" if files else "no image"
        raise ZooError(f"{_shown(root)} holds {few} and at least two are needed{rest}; images are "
                       f"{' '.join(sorted(EXTENSIONS))}")
    return root, files, _layout([file.path for file in files], root)


# ---- which files -------------------------------------------------------------------------------------------
def _scan(root: Path, extensions: Iterable[str]) -> tuple[list[File], Counter]:
    """All image files below `root`, sorted by path, and how many others there are by extension.

    Linked folders are followed once the real ones are through, and each real folder is entered once: so a
    link back into the folder, or a loop of links, adds nothing.
    """
    extensions = frozenset(extensions)
    files, others, seen, folders, links = [], Counter(), set(), [(root, "")], []
    seen.update(_identity(above) for above in root.parents)
    while folders or links:
        folder, prefix = folders.pop() if folders else links.pop()
        if (identity := _identity(folder)) in seen:
            continue
        seen.add(identity)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise ZooError(f"the folder {_shown(folder)} can't be listed: {error.strerror}; make it "
                           "readable or move it away") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name in IGNORED:
                continue
            kind = os.path.splitext(entry.name)[1].lower()
            try:
                status = entry.stat()
            except OSError as error:
                if kind in extensions and error.errno != errno.ELOOP:
                    raise ZooError(f"the image {_shown(entry.path)} can't be read ({error.strerror}); "
                                   "remove it or mend it") from error
                continue
            if stat.S_ISDIR(status.st_mode):
                found = (Path(entry.path), f"{prefix}{entry.name}/")
                (links if entry.is_symlink() else folders).append(found)
            elif stat.S_ISREG(status.st_mode) and kind in extensions:
                files.append(File(prefix + entry.name, status.st_size, status.st_mtime_ns))
            else:
                others[kind] += 1
        links.sort(key=lambda link: link[1], reverse=True)
    return sorted(files), others


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _shown(path: str | Path) -> str:
    """A path as text that can be printed, also where its bytes aren't UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# ---- what they mean ----------------------------------------------------------------------------------------
def _layout(files: list[str], root: Path) -> Layout:
    parts = [file.split("/") for file in files]
    tops = {part[0] for part in parts if len(part) > 1}
    given = {SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    apart = "train" in given and (len(given) > 1 or (len(tops) == 1 and all(len(part) > 1 for part in parts)))
    if apart:
        for file, part in zip(files, parts):
            if len(part) == 1 or part[0].lower() not in SPLITS:
                raise ZooError(f"{_shown(root)} has folders for splits ({', '.join(sorted(given))}), but "
                               f"{_shown(file)} lies in none of them; move it into one, or away")
    split_of = [SPLITS[part[0].lower()] if apart else "train" for part in parts]
    inner = [part[1:] if apart else part for part in parts]

    flat = next((file for file, part in zip(files, inner) if len(part) == 1), None)
    classes = tuple(sorted({part[0] for part in inner if len(part) > 1}))
    labels, why = None, ""
    if flat is not None:
        why = f"{_shown(flat)} lies in no class folder"
    elif len(classes) < 2:
        why = f"{_shown(classes[0])} is the only folder"
    else:
        number = {name: k for k, name in enumerate(classes)}
        labels = [number[part[0]] for part in inner]

    pool = [row for row, split in enumerate(split_of) if split == "train"]
    absent = [split for split in ("validation", "test") if split not in given or not apart]
    for row, split in _carve(files, pool, labels or [0] * len(files), absent).items():
        split_of[row] = split
    splits = {name: [row for row, split in enumerate(split_of) if split == name]
              for name in ("train", "validation", "test")}
    return Layout(tuple(map(_shown, classes)) if labels is not None else (), labels, splits, why)


def _carve(files: list[str], pool: list[int], groups: list[int], names: list[str]) -> dict[int, str]:
    """The split of each row of `pool`: a tenth for each of `names`, the rest train, by a hash of the path.

    The lowest draw of a class goes to train if the class has none there; the highest that can be spared goes
    to a split that would be empty. Both only bite in small folders.
    """
    draw = {row: int.from_bytes(hashlib.blake2b(os.fsencode(files[row]), digest_size=8).digest(), "little")
            for row in pool}
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


# ---- the cache ---------------------------------------------------------------------------------------------
def _cached(root: Path, files: list[File], size: int) -> tuple[np.ndarray, str]:
    """The decoded images (n, 3, size, size) in a private memory map, and their fingerprint.

    A cache is a folder named by the image folder's path and by the sizes and times of all its files. It is
    written under a temporary name and renamed when complete, so what bears the name was whole; a lock keeps
    two processes from doing the same work.
    """
    store = paths.home() / "cache"
    place = f"folder-{_digest([VERSION, root, size])}"
    final = store / f"{place}-{_digest(value for file in files for value in file)}"
    if (found := _open(final, len(files), size)) is not None:
        return found
    try:
        from filelock import FileLock

        store.mkdir(parents=True, exist_ok=True)
        with FileLock(store / f".{place}.lock"):
            if (found := _open(final, len(files), size)) is not None:
                return found
            _build(root, files, size, place, final)
    except OSError as error:
        wanted = len(files) * 3 * size * size
        sentence = str(paths.explain(error, store, wanted))
        raise ZooError(f"{sentence}; ZOO_HOME can name another folder for caches") from error
    found = _open(final, len(files), size)
    if found is None:
        raise ZooError(f"the cache {final} vanished while it was being opened; run the command again")
    return found


def _digest(values: Iterable) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(os.fsencode(str(value)) + b"\0")
    return digest.hexdigest()[:16]


def _open(final: Path, count: int, size: int) -> tuple[np.ndarray, str] | None:
    """The cache, or None if it isn't there or isn't whole (then it is made anew)."""
    import numpy as np

    try:
        index = json.loads((final / "index.json").read_text(encoding="utf-8"))
        images = np.lib.format.open_memmap(final / "images.npy", mode="c")
        fingerprint = index["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = images.dtype == np.uint8 and images.shape == (count, 3, size, size)
    return (images, fingerprint) if whole and isinstance(fingerprint, str) else None


def _build(root: Path, files: list[File], size: int, place: str, final: Path) -> None:
    """Decode all into `final`. The caller holds the lock, so other folders of this place are leftovers."""
    for stale in final.parent.glob(f".{place}-*.part"):
        shutil.rmtree(stale, ignore_errors=True)
    wanted, free = len(files) * 3 * size * size, shutil.disk_usage(final.parent).free
    if free < wanted + (1 << 20):
        raise OSError(errno.ENOSPC, "disk full")
    part = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{place}-", suffix=".part"))
    try:
        _write(root, files, size, part)
        os.chmod(part, 0o755)
        if final.exists():                      # there, but not whole
            shutil.rmtree(final)
        os.rename(part, final)
        paths.sync_folder(final.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for old in final.parent.glob(f"{place}-*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def _write(root: Path, files: list[File], size: int, part: Path) -> None:
    """images.npy and index.json, in `part`. The fingerprint is of paths and contents, not times or place."""
    import numpy as np

    mark, bad = hashlib.sha256(f"folder {VERSION} {size}\n".encode()), []
    with open(part / "images.npy", "wb") as out:
        shape = (len(files), 3, size, size)
        np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for file, result in zip(files, _said(_decoded(root, files, size), len(files), root)):
            if isinstance(result, ZooError):
                bad.append(result)
                continue
            pixels, content = result
            if not bad:
                out.write(pixels.data)
            mark.update(os.fsencode(file.path) + f"\0{file.size}\0{content}\n".encode())
        if bad:
            raise _unreadable(bad)
        out.flush()
        os.fsync(out.fileno())
    index = {"version": VERSION, "folder": _shown(root), "size": size, "images": len(files),
             "fingerprint": mark.hexdigest()}
    paths.write_text(part / "index.json", json.dumps(index, indent=1) + "\n")


def _unreadable(bad: list[ZooError]) -> ZooError:
    if len(bad) == 1:
        return bad[0]
    named = "; ".join(map(str, bad[:NAMED_AT_MOST]))
    return ZooError(f"{len(bad)} images can't be read: {named}{'; ...' if len(bad) > NAMED_AT_MOST else ''}")


def _decoded(root: Path, files: list[File], size: int) -> Iterator:
    """`decode` of each file, in order, in threads (Pillow releases the GIL). Only a few wait at a time."""
    from zoo.data.decode import decode

    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque = deque()
        try:
            for file in files:
                waiting.append(pool.submit(decode, root / file.path, size))
                if len(waiting) >= 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _said(results: Iterator, count: int, root: Path) -> Iterator:
    """Say on standard error what takes long: at the first second, then every ten."""
    begun = time.monotonic()
    due = begun + 1
    for done, result in enumerate(results):
        if time.monotonic() > due:
            print(f"decoding the images of {root}, once: {done:,} of {count:,}", file=sys.stderr, flush=True)
            due = time.monotonic() + 10
        yield result

"""The decoded images of a folder: made once, kept in a memory-mapped file, and made anew when the folder changes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo import paths
from zoo.data.media.threads import Threads
from zoo.errors import ZooError

if TYPE_CHECKING:
    import numpy as np

VERSION = "1"  # of what decoding and splitting give; part of every cache's name and fingerprint
NAMED_AT_MOST = 5  # unreadable images that one sentence names
PATIENCE = 300.0  # seconds for one image, after which the disk or server that holds it is given up
BAD_SAMPLES = "bad_samples.jsonl"


class File(NamedTuple):
    """An image file: its path below the folder, with slashes, its bytes, and when it was changed (ns)."""

    path: str
    size: int
    time: int


class Policy(NamedTuple):
    """What to do about images that can't be read: raise, skip or replace; the latter two up to a share of the
    folder.
    """

    way: str = "raise"
    share: float = 0.001
    substitutes: Callable[[set[int]], dict[int, int]] = lambda bad: {}  # the row that takes the place of each bad row


class Cache(NamedTuple):
    """`images` (n, 3, size, size) in a private memory map; `bad` has {path, reason} of each unreadable image,
    and with replace the path that stands in for it (`replaced_by`).
    """

    images: np.ndarray
    fingerprint: str
    bad: list[dict]


def cached(root: Path, files: list[File], size: int, policy: Policy) -> Cache:
    """The decoded images of `files`, in their order; with skip, of those that can be read.

    A cache is a folder named by the image folder's path and by the sizes and times of all its files. It is
    written under a temporary name and renamed when complete, so what bears the name was whole; a lock keeps
    two processes from doing the same work.
    """
    store = paths.home() / "cache"
    place = f"folder-{_digest([VERSION, root, size, *(policy[:2] if policy.way != 'raise' else ())])}"
    final = store / f"{place}-{_digest(value for file in files for value in file)}"
    if (found := _open(final, len(files), size)) is not None:
        return found
    try:
        from filelock import FileLock

        store.mkdir(parents=True, exist_ok=True)
        with FileLock(store / f".{place}.lock"):
            if (found := _open(final, len(files), size)) is not None:
                return found
            _build(root, files, size, policy, place, final)
    except OSError as error:
        wanted = len(files) * 3 * size * size
        sentence = str(paths.explain(error, store, wanted))
        raise ZooError(f"{sentence}; ZOO_HOME can name another folder for caches") from error
    found = _open(final, len(files), size)
    if found is None:
        raise ZooError(f"the cache {final} vanished while it was being opened; run the command again")
    return found


def shown(path: str | Path) -> str:
    """A path as text that can be printed, also where its bytes aren't UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def bad_lines(bad: list[dict]) -> str:
    """The text of bad_samples.jsonl: an object per line."""
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in bad)


def _digest(values: Iterable) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(os.fsencode(str(value)) + b"\0")
    return digest.hexdigest()[:16]


def _open(final: Path, count: int, size: int) -> Cache | None:
    """The cache, or None if it isn't there or isn't whole (then it is made anew)."""
    import numpy as np

    try:
        index = json.loads((final / "index.json").read_text(encoding="utf-8"))
        images = np.lib.format.open_memmap(final / "images.npy", mode="c")
        fingerprint, bad = index["fingerprint"], index.get("bad", [])
        kept = count - sum("replaced_by" not in entry for entry in bad)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = images.dtype == np.uint8 and images.shape == (kept, 3, size, size)
    return Cache(images, fingerprint, bad) if whole and isinstance(fingerprint, str) else None


def _build(root: Path, files: list[File], size: int, policy: Policy, place: str, final: Path) -> None:
    """Decode all into `final`. The caller holds the lock, so other folders of this place are leftovers."""
    for stale in final.parent.glob(f".{place}-*.part"):
        shutil.rmtree(stale, ignore_errors=True)
    wanted, free = len(files) * 3 * size * size, shutil.disk_usage(final.parent).free
    if free < wanted + (1 << 20):
        raise OSError(errno.ENOSPC, "disk full")
    part = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{place}-", suffix=".part"))
    try:
        _write(root, files, size, policy, part)
        os.chmod(part, 0o755)
        if final.exists():  # there, but not whole
            shutil.rmtree(final)
        os.rename(part, final)
        paths.sync_folder(final.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for old in final.parent.glob(f"{place}-*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def _write(root: Path, files: list[File], size: int, policy: Policy, part: Path) -> None:
    """images.npy and index.json, in `part`. The fingerprint is of paths and contents, not times or place."""
    mark, bad = hashlib.sha256(f"folder {VERSION} {size}\n".encode()), {}
    with open(part / "images.npy", "w+b") as out:
        start, row_bytes = _header(out, len(files), size), 3 * size * size
        for row, result in enumerate(_said(decoded((root / file.path for file in files), size), len(files), root)):
            file = files[row]
            if isinstance(result, ZooError):
                bad[row] = result
                mark.update(os.fsencode(file.path) + f"\0{policy.way}\n".encode())
                if policy.way == "replace":
                    out.write(bytes(row_bytes))
                continue
            pixels, content = result
            if not (bad and policy.way == "raise"):
                out.write(pixels.data)
            mark.update(os.fsencode(file.path) + f"\0{file.size}\0{content}\n".encode())
        instead = _settle(bad, files, policy, root)
        for row, other in instead.items():
            out.seek(start + other * row_bytes)
            pixels = out.read(row_bytes)
            out.seek(start + row * row_bytes)
            out.write(pixels)
        if bad and not instead:
            _header(out, len(files) - len(bad), size)
        out.flush()
        os.fsync(out.fileno())
    names = [
        {
            "path": shown(files[row].path),
            "reason": error.reason,
            **({"replaced_by": shown(files[instead[row]].path)} if instead else {}),
        }
        for row, error in bad.items()
    ]
    index = {
        "version": VERSION,
        "folder": shown(root),
        "size": size,
        "images": len(files) if instead else len(files) - len(bad),
        "fingerprint": mark.hexdigest(),
        "bad": names,
    }
    if names:
        paths.write_text(part / BAD_SAMPLES, bad_lines(names))
    paths.write_text(part / "index.json", json.dumps(index, indent=1) + "\n")


def _header(out, count: int, size: int) -> int:
    """The array's header, at the beginning of the file; it has the same length whatever the count. Returns that
    length.
    """
    import numpy as np

    out.seek(0)
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)})
    return out.tell()


def _settle(bad: dict[int, ZooError], files: list[File], policy: Policy, root: Path) -> dict[int, int]:
    """Whether the policy puts up with the unreadable images; the rows that stand in for them, if it replaces them."""
    if not bad:
        return {}
    if policy.way == "raise":
        raise _unreadable(list(bad.values()))
    if len(bad) > policy.share * len(files):
        raise ZooError(
            f"{len(bad):,} of the {len(files):,} images of {shown(root)} can't be read, and data.bad_share "
            f"{policy.share:g} allows "
            f"{int(policy.share * len(files)):,}; mend or remove them, or allow more: {_named(list(bad.values()))}"
        )
    if len(files) - len(bad) < 2:
        raise ZooError(f"{shown(root)} holds fewer than two images that can be read: {_named(list(bad.values()))}")
    return policy.substitutes(set(bad)) if policy.way == "replace" else {}


def _unreadable(bad: list[ZooError]) -> ZooError:
    return bad[0] if len(bad) == 1 else ZooError(f"{len(bad)} images can't be read: {_named(bad)}")


def _named(bad: list[ZooError]) -> str:
    return "; ".join(map(str, bad[:NAMED_AT_MOST])) + ("; ..." if len(bad) > NAMED_AT_MOST else "")


def decoded(files: Iterable[Path], size: int) -> Iterator:
    """`decode` of each file, in order, in threads (Pillow releases the GIL). Only a few wait at a time. Raises ZooError
    for one that never comes.
    """
    from zoo.data.media.decode import decode

    count = min(8, os.cpu_count() or 1)
    threads = Threads(count, "decode")

    def next_result() -> object:
        future, path = waiting.popleft()
        try:
            return future.result(timeout=PATIENCE)
        except TimeoutError:
            raise ZooError(
                f"the image {shown(path)} could not be read within {PATIENCE:g} s; see to the disk or server that it "
                "lies on"
            ) from None

    waiting: deque = deque()
    try:
        for path in files:
            waiting.append((threads.submit(decode, path, size), path))
            if len(waiting) >= 4 * count:
                yield next_result()
        while waiting:
            yield next_result()
    finally:
        for future, _ in waiting:
            future.cancel()
        threads.close()


def _said(results: Iterator, count: int, root: Path) -> Iterator:
    """Say on standard error what takes long: at the first second, then every ten."""
    begun = time.monotonic()
    due = begun + 1
    for done, result in enumerate(results):
        if time.monotonic() > due:
            print(f"decoding the images of {root}, once: {done:,} of {count:,}", file=sys.stderr, flush=True)
            due = time.monotonic() + 10
        yield result

"""The decoded files of a folder: made once, kept in a memory-mapped file, and made anew when the folder changes."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo import paths
from zoo.data.media.threads import Threads
from zoo.errors import ZooError
from zoo.fields import ImageSize, height_width, size_name

if TYPE_CHECKING:
    import numpy as np

VERSION = "1"  # of what decoding and splitting give; part of every cache's name and fingerprint
NAMED_AT_MOST = 5  # unreadable files that one sentence names
PATIENCE = 300.0  # seconds for one file, after which the disk or server that holds it is given up
BAD_SAMPLES = "bad_samples.jsonl"


class File(NamedTuple):
    """A file of a sample: its path below the folder, with slashes, its bytes, and when it was changed (ns)."""

    path: str
    size: int
    time: int


class Form(NamedTuple):
    """What a row of a cache holds, and how a file becomes one.

    noun    what a file is called in sentences: image or sound
    place   what the names of the caches begin with: folder or sounds
    name    the rest of what decides a row beside the file, such as the size; part of the fingerprint
    shape   of a row
    dtype   of its values, as numpy writes it
    decode  the path of a file -> (its row as an array, the sha256 of the file), or an Unreadable
    """

    noun: str
    place: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    decode: Callable[[Path], Any]

    @property
    def bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * int(self.dtype[-1])


def image_form(size: ImageSize) -> Form:
    """Rows that are images: uint8 (3, height, width)."""
    from zoo.data.media import decode as media

    name = size_name(size)
    return Form("image", "folder", name, (3, *height_width(size)), "|u1", lambda path: media.decode(path, size))


class Policy(NamedTuple):
    """What to do about files that can't be read: raise, skip or replace; the latter two up to a share of the
    folder.
    """

    way: str = "raise"
    share: float = 0.001
    substitutes: Callable[[set[int]], dict[int, int]] = lambda bad: {}  # the row that takes the place of each bad row


class Cache(NamedTuple):
    """`rows` (n, *shape) in a private memory map; `bad` has {path, reason} of each unreadable file, and with replace
    the path of the file that stands in for it (`replaced_by`).
    """

    rows: np.ndarray
    fingerprint: str
    bad: list[dict]


def cached(root: Path, files: list[File], form: Form, policy: Policy) -> Cache:
    """The rows of `files`, in their order; with skip, of those that can be read.

    A cache is a folder named by the path of the folder of files and by the sizes and times of all its files. It is
    written under a temporary name and renamed when complete, so what bears the name was whole; a lock keeps
    two processes from doing the same work.
    """
    store = paths.home() / "cache"
    place = f"{form.place}-{_digest([VERSION, root, form.name, *(policy[:2] if policy.way != 'raise' else ())])}"
    final = store / f"{place}-{_digest(value for file in files for value in file)}"
    if (found := _open(final, len(files), form)) is not None:
        return found
    try:
        from filelock import FileLock

        store.mkdir(parents=True, exist_ok=True)
        with FileLock(store / f".{place}.lock"):
            if (found := _open(final, len(files), form)) is not None:
                return found
            _build(root, files, form, policy, place, final)
    except OSError as error:
        wanted = len(files) * form.bytes
        sentence = str(paths.explain(error, store, wanted))
        raise ZooError(f"{sentence}; ZOO_HOME can name another folder for caches") from error
    found = _open(final, len(files), form)
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


def _open(final: Path, count: int, form: Form) -> Cache | None:
    """The cache, or None if it isn't there or isn't whole (then it is made anew)."""
    import numpy as np

    try:
        index = json.loads((final / "index.json").read_text(encoding="utf-8"))
        rows = np.lib.format.open_memmap(final / f"{form.noun}s.npy", mode="c")
        fingerprint, bad = index["fingerprint"], index.get("bad", [])
        kept = count - sum("replaced_by" not in entry for entry in bad)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = rows.dtype == np.dtype(form.dtype) and rows.shape == (kept, *form.shape)
    return Cache(rows, fingerprint, bad) if whole and isinstance(fingerprint, str) else None


def _build(root: Path, files: list[File], form: Form, policy: Policy, place: str, final: Path) -> None:
    """Decode all into `final`. The caller holds the lock, so other folders of this place are leftovers."""
    for stale in final.parent.glob(f".{place}-*.part"):
        shutil.rmtree(stale, ignore_errors=True)
    wanted, free = len(files) * form.bytes, shutil.disk_usage(final.parent).free
    if free < wanted + (1 << 20):
        raise OSError(errno.ENOSPC, "disk full")
    part = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{place}-", suffix=".part"))
    try:
        _write(root, files, form, policy, part)
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


def _write(root: Path, files: list[File], form: Form, policy: Policy, part: Path) -> None:
    """images.npy or sounds.npy, and index.json, in `part`. The fingerprint is of paths and contents, not times or
    place.
    """
    mark, bad = hashlib.sha256(f"{form.place} {VERSION} {form.name}\n".encode()), {}
    with open(part / f"{form.noun}s.npy", "w+b") as out:
        start, row_bytes = _header(out, len(files), form), form.bytes
        results = decoded((root / file.path for file in files), form.decode, form.noun)
        for row, result in enumerate(with_progress(results, len(files), f"decoding the {form.noun}s of {root}")):
            file = files[row]
            if isinstance(result, ZooError):
                bad[row] = result
                mark.update(os.fsencode(file.path) + f"\0{policy.way}\n".encode())
                if policy.way == "replace":
                    out.write(bytes(row_bytes))
                continue
            values, content = result
            if not (bad and policy.way == "raise"):
                out.write(values.data)
            mark.update(os.fsencode(file.path) + f"\0{file.size}\0{content}\n".encode())
        instead = _settle(bad, files, policy, root, form.noun)
        for row, other in instead.items():
            out.seek(start + other * row_bytes)
            values = out.read(row_bytes)
            out.seek(start + row * row_bytes)
            out.write(values)
        if bad and not instead:
            _header(out, len(files) - len(bad), form)
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
        "size": form.name,
        f"{form.noun}s": len(files) if instead else len(files) - len(bad),
        "fingerprint": mark.hexdigest(),
        "bad": names,
    }
    if names:
        paths.write_text(part / BAD_SAMPLES, bad_lines(names))
    paths.write_text(part / "index.json", json.dumps(index, indent=1) + "\n")


def _header(out, count: int, form: Form) -> int:
    """The array's header, at the beginning of the file; it has the same length whatever the count. Returns that
    length.
    """
    import numpy as np

    out.seek(0)
    shape = (count, *form.shape)
    np.lib.format.write_array_header_1_0(out, {"descr": form.dtype, "fortran_order": False, "shape": shape})
    return out.tell()


def _settle(bad: dict[int, ZooError], files: list[File], policy: Policy, root: Path, noun: str) -> dict[int, int]:
    """The rows that stand in for the unreadable ones, where the policy replaces them. Raises ZooError unless the policy
    allows that many.
    """
    if not bad:
        return {}
    if policy.way == "raise":
        raise _unreadable(list(bad.values()), noun)
    if len(bad) > policy.share * len(files):
        raise ZooError(
            f"{len(bad):,} of the {len(files):,} {noun}s of {shown(root)} can't be read, and data.bad_share "
            f"{policy.share:g} allows "
            f"{int(policy.share * len(files)):,}; mend or remove them, or allow more: {_named(list(bad.values()))}"
        )
    if len(files) - len(bad) < 2:
        raise ZooError(f"{shown(root)} holds fewer than two {noun}s that can be read: {_named(list(bad.values()))}")
    return policy.substitutes(set(bad)) if policy.way == "replace" else {}


def _unreadable(bad: list[ZooError], noun: str) -> ZooError:
    return bad[0] if len(bad) == 1 else ZooError(f"{len(bad)} {noun}s can't be read: {_named(bad)}")


def _named(bad: list[ZooError]) -> str:
    return "; ".join(map(str, bad[:NAMED_AT_MOST])) + ("; ..." if len(bad) > NAMED_AT_MOST else "")


def decoded(files: Iterable[Path], decode: Callable[[Path], Any], noun: str = "image") -> Iterator:
    """`decode` of each file, in order, in threads (Pillow and libsndfile release the GIL). Only a few wait at a time.
    Raises ZooError for a file that can't be read in time.
    """
    count = min(8, os.cpu_count() or 1)
    threads = Threads(count, "decode")

    def next_result() -> object:
        future, path = waiting.popleft()
        try:
            return future.result(timeout=PATIENCE)
        except TimeoutError:
            raise ZooError(
                f"the {noun} {shown(path)} could not be read within {PATIENCE:g} s; see to the disk or server that it "
                "lies on"
            ) from None

    waiting: deque = deque()
    try:
        for path in files:
            waiting.append((threads.submit(decode, path), path))
            if len(waiting) >= 4 * count:
                yield next_result()
        while waiting:
            yield next_result()
    finally:
        for future, _ in waiting:
            future.cancel()
        threads.close()


def with_progress(results: Iterator, count: int, what: str) -> Iterator:
    """The results. Standard error gets a line of progress after the first second, then every ten."""
    begun = time.monotonic()
    due = begun + 1
    for done, result in enumerate(results):
        if time.monotonic() > due:
            print(f"{what}, once: {done:,} of {count:,}", file=sys.stderr, flush=True)
            due = time.monotonic() + 10
        yield result

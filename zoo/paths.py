"""Where things lie, and the one way in which files are written and folders replaced."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from zoo.errors import ZooError

PACKAGE = Path(__file__).resolve().parent
PART = ".part"  # how the names of what is being written end, behind eight characters that tempfile draws


def home() -> Path:
    """Folder of caches: `ZOO_HOME`, else ~/.cache/zoo. It is not created here."""
    return expanded(os.environ.get("ZOO_HOME") or Path.home() / ".cache" / "zoo")


def expanded(path: str | Path) -> Path:
    """With the home that a leading ~ or ~name stands for. Raises ZooError for a name that nobody has, and for what can
    be no path.
    """
    if "\0" in str(path):
        raise ZooError(f"{str(path)!r} has a null character, which no path can have")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ZooError(
            f"{path} begins with the home of somebody unknown here ({error}); write the path in full, or ./~name for "
            "a folder of that name"
        ) from error


def offline() -> bool:
    """Whether ZOO_OFFLINE (or --offline) forbids the network."""
    return os.environ.get("ZOO_OFFLINE", "").lower() not in ("", "0", "false", "no")


def shipped(kind: str) -> Path | None:
    """The folder `recipes` or `hub` that travels with the code: inside a wheel, or beside zoo/ in a checkout."""
    inside = PACKAGE / "_shipped" / kind
    if inside.is_dir():
        return inside
    checkout = PACKAGE.parent
    beside = checkout / kind
    return beside if (checkout / "pyproject.toml").is_file() and beside.is_dir() else None


def write_bytes(path: Path | str, data: bytes, name: Path | None = None) -> Path:
    """Write a file so that a reader, or a crash at any moment, sees the old content or the new, never a part.

    The temporary file lies in the same folder: elsewhere, a rename would be a copy that a full disk cuts short.
    Raises ZooError when the disk is full or the folder can't be written; it calls the file `name`, if that is given.
    """
    path = Path(path)
    temporary = None
    try:
        if path.exists() and not path.is_file():  # a pipe, /dev/null or a folder would be replaced, or can't be
            raise ZooError(f"{name or path} can't be written: it is no ordinary file; give another")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        with os.fdopen(handle, "wb") as file:
            _lock(handle)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes private files; these are meant to be shared
            os.replace(temporary, path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise explain(error, name or path, len(data)) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return path


def write_text(path: Path | str, text: str) -> Path:
    return write_bytes(path, text.encode("utf-8"))


def successors(usual: Path) -> Iterator[Path]:
    """`usual`, `usual`-2, `usual`-3, ...: where to look for one that isn't taken."""
    return itertools.chain([usual], (usual.with_name(f"{usual.name}-{number}") for number in itertools.count(2)))


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """An empty folder to fill beside `folder`, for `swap`; it is gone in the end, whatever it then holds. First it
    mends what killed ones left there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    restore(folder)
    clear_leftovers(folder.parent, folder.name)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=PART))
    handle = os.open(fresh, os.O_RDONLY)
    try:
        _lock(handle)
        yield fresh
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            remove(fresh)


def swap(fresh: Path, folder: Path) -> None:
    """Put the folder `fresh` in the place of `folder` and sync that; `fresh` then is what was there, if anything was.

    One step, so that a reader, or a kill at any moment, finds the old or the new. Where a system can't do it in one
    (NFS), it is two, and what was there has another name in between; `restore` puts it back.
    """
    if not os.path.lexists(folder):
        os.replace(fresh, folder)
    elif not _exchange(fresh, folder):
        os.replace(folder, _replaced(folder))
        os.replace(fresh, folder)
        os.replace(_replaced(folder), fresh)
    sync_folder(folder.parent)


def restore(folder: Path) -> None:
    """Put back what a `swap` that was killed between two steps had taken away. For those who write `folder`."""
    if not os.path.lexists(folder) and os.path.lexists(_replaced(folder)):
        os.replace(_replaced(folder), folder)


def _replaced(folder: Path) -> Path:
    """Where it is put back from. Once the new folder is there, it is as good as any other leftover."""
    return folder.with_name(f".{folder.name}.replaced{PART}")


def _exchange(one: Path, other: Path) -> bool:
    """Both names change places in one step. False where the system (only Linux has it) or the file system can't."""
    import ctypes

    call, here, exchange = getattr(ctypes.CDLL(None), "renameat2", None), -100, 2
    return call is not None and call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete what killed processes left in `folder` of `write_bytes` and `beside`: all of it, or that for `name`.

    What is being written is locked, and stays; so does what can't be locked (a folder on NFS), or deleted.
    """
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.[a-z0-9_]{{8}}{re.escape(PART)}")
    for path in [path for path in folder.iterdir() if pattern.fullmatch(path.name)]:
        with contextlib.suppress(OSError):
            handle = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(path)
            finally:
                os.close(handle)


def _lock(handle: int) -> None:
    """A sign that somebody is at it, which is gone when its process is."""
    with contextlib.suppress(OSError):  # some network file systems can't
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the file system has that for folders."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network and FUSE file systems can't
            raise
    finally:
        os.close(handle)


def explain(error: OSError, path: Path, size: int) -> ZooError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ZooError(
            f"{path} can't be written: the disk is full and {size:,} bytes are needed; what was there before is "
            "untouched"
        )
    return ZooError(f"{path} can't be written: {error.strerror or error}")

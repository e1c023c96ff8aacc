"""Where things lie, and the one way in which small files are written."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from zoo.errors import ZooError

PACKAGE = Path(__file__).resolve().parent


def home() -> Path:
    """Folder of caches: `ZOO_HOME`, else ~/.cache/zoo. It is not created here."""
    return Path(os.environ.get("ZOO_HOME") or Path.home() / ".cache" / "zoo").expanduser()


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
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)                      # mkstemp makes private files; these are meant to be shared
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


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the file system has that for folders."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:             # some network and FUSE file systems can't
            raise
    finally:
        os.close(handle)


def explain(error: OSError, path: Path, size: int) -> ZooError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ZooError(f"{path} can't be written: the disk is full and {size:,} bytes are needed; what was there before is untouched")
    return ZooError(f"{path} can't be written: {error.strerror or error}")

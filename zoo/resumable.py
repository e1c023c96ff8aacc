"""The resumable state of a run (last.ckpt): written so that nothing good is ever lost, read only when its checksum holds."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from zoo.card import sha256
from zoo.errors import ZooError
from zoo.paths import explain, sync_folder, write_bytes, write_text

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside the destination, syncs, reads back, then renames; the state before stays as previous.ckpt.

    Lightning's own writer stages in the temporary folder and moves: across file systems a full disk then destroys the last good file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._readable = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises ZooError, naming path and bytes, when it can't be written; what was saved before is then as it was."""
        if storage_options is not None:
            raise TypeError("storage_options has no meaning for files on this machine")
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        data = buffer.getbuffer()
        self._check_readable(buffer, path)
        digest, fresh = hashlib.sha256(data).hexdigest(), path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
            if free < len(data):
                raise ZooError(f"{path} can't be written: it needs {len(data):,} bytes and {free:,} are free; what was saved before is untouched")
            write_bytes(fresh, data)
            if sha256(fresh) != digest:
                raise ZooError(f"{path} can't be written: the disk doesn't give back the {len(data):,} bytes that it was given; "
                               "what was saved before is untouched")
            write_text(_digest_file(fresh), digest)
            _rotate(path, fresh)
        except OSError as error:
            raise explain(error, path, len(data)) from error
        finally:
            fresh.unlink(missing_ok=True)
            _digest_file(fresh).unlink(missing_ok=True)

    def _check_readable(self, buffer: io.BytesIO, path: Path) -> None:
        """A state that only unpickling code could read back is refused at the first save, not at the resume that needs it."""
        if not self._readable:
            buffer.seek(0)
            try:
                torch.load(buffer, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise ZooError(f"{path} isn't written, because it could not be read back: the task or a callback keeps something else than tensors "
                               f"and plain values in its state ({str(error).splitlines()[0][:300]})") from error
            self._readable = True

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Plain tensors and values only: a state that would run code is refused, whatever `weights_only` says. Raises ZooError."""
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise ZooError(f"{path} can't be read as the state of a run: {str(error).splitlines()[0][:300]}") from error


def _rotate(path: Path, fresh: Path) -> None:
    """path -> previous.ckpt, fresh -> path, each with its checksum. Renames alone, which need no room. After each of them a whole
    state lies there with its checksum in one of the two files of checksums, which is why newest_good reads both."""
    previous = path.with_name(PREVIOUS)
    if path.exists():
        os.replace(path, previous)
        if _digest_file(path).exists():
            os.replace(_digest_file(path), _digest_file(previous))
    os.replace(_digest_file(fresh), _digest_file(path))
    os.replace(fresh, path)
    sync_folder(path.parent)


def newest_good(folder: Path | str) -> Path | None:
    """The newest saved state whose checksum holds, or None when the run never saved one. Warns when it isn't the newest.

    Raises ZooError when there are states and none is whole.
    """
    folder = Path(folder)
    states = [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]
    known = {_digest_file(folder / name).read_text(errors="replace").strip() for name in (LAST, PREVIOUS) if _digest_file(folder / name).is_file()}
    for state in states:
        if sha256(state) in known:
            return state
        warnings.warn(f"{state} is damaged or was not finished and is left aside", stacklevel=2)
    if states:
        raise ZooError(f"no saved state of {folder} is whole; start the run again with --out ANOTHER-FOLDER")
    return None


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")

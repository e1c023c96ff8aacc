"""The resumable state of a run (last.ckpt): written so that nothing good is ever lost, read only when its checksum holds."""

from __future__ import annotations

import io
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from zoo.card import sha256
from zoo.errors import ZooError
from zoo.paths import sync_folder, write_bytes, write_text

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside the destination, syncs, checks, then renames; the state before stays as previous.ckpt.

    Lightning's own writer stages in the temporary folder and moves: across file systems a full disk then destroys the last good file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        data = buffer.getvalue()
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < len(data):
            raise ZooError(f"{path} can't be written: it needs {len(data):,} bytes and {free:,} are free; what was saved before is untouched")
        fresh = path.with_name(f".{path.name}.new")
        write_bytes(fresh, data)
        digest = sha256(fresh)                      # of what the disk gives back
        if path.exists():
            os.replace(path, path.with_name(PREVIOUS))
            _rename_if_there(_digest_file(path), _digest_file(path.with_name(PREVIOUS)))
        write_text(_digest_file(path), digest)
        os.replace(fresh, path)
        sync_folder(path.parent)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Plain tensors and values only: a state that would run code is refused."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


def newest_good(folder: Path) -> Path | None:
    """The newest saved state whose checksum holds, or None when the run never saved one. Warns when it isn't the newest.

    Raises ZooError when there are states and none is whole.
    """
    states = [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]
    for state in states:
        digest = _digest_file(state)
        if digest.is_file() and digest.read_text().strip() == sha256(state):
            return state
        warnings.warn(f"{state} is damaged or was not finished and is left aside", stacklevel=2)
    if states:
        raise ZooError(f"no saved state of {folder} is whole; start the run again with --out ANOTHER-FOLDER")
    return None


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _rename_if_there(old: Path, new: Path) -> None:
    if old.exists():
        os.replace(old, new)

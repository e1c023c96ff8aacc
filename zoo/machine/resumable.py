"""The resumable state of a run (last.ckpt): written so that nothing good is ever lost, read only when its checksum
holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from zoo.card import sha256
from zoo.errors import ZooError
from zoo.paths import explain, sync_folder, write_bytes

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside the destination, syncs, reads back, then renames; the state before stays as previous.ckpt.

    Lightning's own writer stages in the temporary folder and moves: across file systems a full disk then destroys the
    last good file.
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
                raise ZooError(
                    f"{path} can't be written: it needs {len(data):,} bytes and {free:,} are free; what was saved "
                    "before is untouched"
                )
            write_bytes(fresh, data, path)
            if sha256(fresh) != digest:
                raise ZooError(
                    f"{path} can't be written: the disk doesn't give back the {len(data):,} bytes that it was given; "
                    "what was saved before is untouched"
                )
            write_bytes(_digest_file(fresh), digest.encode(), path)
            _rotate(path, fresh)
        except OSError as error:
            raise explain(error, path, len(data)) from error
        finally:
            for file in (fresh, _digest_file(fresh)):
                with contextlib.suppress(
                    OSError
                ):  # such as that of a disk that has become read-only: it has nothing to tell beside the first
                    file.unlink(missing_ok=True)

    def _check_readable(self, buffer: io.BytesIO, path: Path) -> None:
        """A state that only unpickling code could read back is refused at the first save, not at the resume that needs
        it.
        """
        if not self._readable:
            buffer.seek(0)
            try:
                torch.load(buffer, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise ZooError(
                    f"{path} isn't written, because it could not be read back: the task or a callback keeps something "
                    "else than tensors "
                    f"and plain values in its state ({str(error).splitlines()[0][:300]})"
                ) from error
            self._readable = True

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Plain tensors and values only: a state that would run code is refused, whatever `weights_only` says. Raises
        ZooError.
        """
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise ZooError(f"{path} can't be read as the state of a run: {str(error).splitlines()[0][:300]}") from error


class LocalCheckpointIO(TorchCheckpointIO):
    """Lightning's, for files of this machine: by itself it would run what an address serves."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if "://" in str(path):
            raise ZooError(
                f"{str(path)[:80]} is an address, and the state of a run that comes from elsewhere isn't loaded; get "
                "the file, and give its path"
            )
        return super().load_checkpoint(path, map_location, weights_only)


class SaveState(L.Callback):
    """Saves the resumable state every so many optimizer steps, always into last.ckpt; the writer keeps the one before.

    A state is that of a step's end. With it goes where the curves stand, so that a run which goes on has each of their
    points once; and where validation follows the step, or is underway, the run goes on with the whole of it.
    """

    def __init__(self, folder: Path, every: int):
        self.path, self.every, self.saved = folder / LAST, every, 0
        self.step, self.stepped = 0, False  # stepped: the batch ended with an optimizer step, and wasn't only added up
        self.curves: dict[str, Any] = {}
        self.beside: dict[Path, bytes] = {}  # files without which the state can't be gone on from
        self._saving, self._rows = False, 0
        self._loops: dict[str, Any] | None = None  # as they are to be saved until the validation that is due has ended

    def on_load_checkpoint(self, trainer: L.Trainer, task: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.curves = checkpoint.get("curves", {})

    def on_train_start(self, trainer: L.Trainer, *ignored: Any) -> None:
        self.saved = self.step = trainer.global_step  # which a resumed run has on the disk already
        for logger in trainer.loggers:
            if hasattr(logger, "rewind"):
                logger.rewind(self.curves.get("rows", 0), self.curves.get("row", {}), trainer.global_step - 1)

    def on_train_batch_end(self, trainer: L.Trainer, *ignored: Any) -> None:
        self.stepped, self.step = trainer.global_step != self.step, trainer.global_step
        self._loops = _before_validation(trainer) if _validates(trainer) else None
        if self.step // self.every > self.saved // self.every and not self.at_end(trainer):
            self.save(trainer)

    def on_validation_start(self, trainer: L.Trainer, *ignored: Any) -> None:
        self._rows = _rows(trainer)

    def on_validation_end(self, *ignored: Any) -> None:
        self._loops = None

    def on_save_checkpoint(self, trainer: L.Trainer, task: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        _check_finite(task, trainer.global_step)
        for path, data in self.beside.items():
            if not path.exists():  # somebody has tidied up
                write_bytes(path, data)
                print(f"{path} was gone and is written again", file=sys.stderr, flush=True)
        if self._loops is not None:
            checkpoint["loops"]["fit_loop"] = self._loops
        row = _coming_row(trainer) if self._saving and not trainer.validating else {}
        checkpoint["curves"] = {"rows": self._rows if trainer.validating else _rows(trainer), "row": row}

    def save(self, trainer: L.Trainer) -> None:
        """Save the state of the step that has just ended, if that isn't done. To be called from on_train_batch_end, and
        in validation.
        """
        if self.saved != trainer.global_step:
            self.saved, self._saving = trainer.global_step, True
            self.write(trainer)
            self._saving = False

    def write(self, trainer: L.Trainer) -> None:
        """Save the state as it is now. Raises ZooError, once all is saved, where the run's folder had vanished: with a
        disk that is gone the new one lies elsewhere, which somebody has to know."""
        gone = bool(self.beside) and not any(path.exists() for path in self.beside)
        trainer.save_checkpoint(self.path)
        if gone:
            raise ZooError(
                f"{self.path.parent} was gone at step {trainer.global_step:,}; it is made again, and holds the state "
                "of that step and all that "
                "going on takes, but no earlier curves; see where it went (removed, or a disk that is no longer "
                "mounted), then add --resume"
            )

    def at_end(self, trainer: L.Trainer) -> bool:
        """Whether this was the last step. Its state is saved when the run is over: one from before, of which Lightning
        would do nothing more, lacks the validation and the point of the curves that are still to come."""
        return trainer.global_step >= trainer.estimated_stepping_batches


def _check_finite(task: L.LightningModule, step: int) -> None:
    """A step can lead from a finite gradient to weights that aren't, before any loss shows it."""
    wrong = [name for name, p in task.named_parameters() if not p.isfinite().all()] or [
        name for name, b in task.named_buffers() if b.isnan().any()
    ]
    if wrong:
        raise ZooError(
            f"{wrong[0]}{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''} isn't finite after step {step:,}, "
            "which is why that isn't "
            "saved; a lower optim.lr or a longer optim.warmup usually mends it"
        )


def _validates(trainer: L.Trainer) -> bool:
    """Whether Lightning (2.6) validates after the present batch."""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def _before_validation(trainer: L.Trainer) -> dict[str, Any]:
    """The loops' state as Lightning saves it in the middle of validation, but with none of its batches done: resumed
    from a state of the end of an epoch's last batch, Lightning (2.6) leaves the epoch's validation out."""
    loops = trainer.fit_loop.state_dict()
    for count in ("total", "current"):
        loops["epoch_loop.batch_progress"][count]["completed"] += 1
    for count, begun in (("total", 1), ("current", 0)):
        loops["epoch_loop.val_loop.batch_progress"][count] |= {
            "ready": begun,
            "started": begun,
            "processed": 0,
            "completed": 0,
        }
    return loops


def _rows(trainer: L.Trainer) -> int:
    return max((getattr(logger, "rows", 0) for logger in trainer.loggers), default=0)


def _coming_row(trainer: L.Trainer) -> dict[str, float]:
    """The point that Lightning (2.6) gives to the loggers as soon as the step's callbacks are through; empty if it
    gives none.
    """
    connector = trainer._logger_connector
    values = connector.metrics["log"] if trainer.loggers and connector.should_update_logs else {}
    return {key: float(value) for key, value in values.items()} | {"epoch": trainer.current_epoch} if values else {}


def _rotate(path: Path, fresh: Path) -> None:
    """The newest whole state -> previous.ckpt, fresh -> path, each with its checksum. Renames alone, which need no
    room.

    Before each of them a whole state lies there whose checksum is in one of the two files of checksums, whatever
    earlier kills have left; that is why newest_good reads both, and why the one with the checksum of what is kept goes
    first. A damaged state takes no whole one's place.
    """
    previous = path.with_name(PREVIOUS)
    for state in (path, previous):
        if (known := _checksum(state)) is not None:
            if state != previous:
                os.replace(state, previous)
            if known != _digest_file(previous):
                os.replace(known, _digest_file(previous))
            break
    os.replace(_digest_file(fresh), _digest_file(path))
    os.replace(fresh, path)
    sync_folder(path.parent)


def newest_good(folder: Path | str) -> Path | None:
    """The newest saved state whose checksum holds, or None when the run never saved one. Warns when it isn't the
    newest.

    Raises ZooError when there are states and none is whole.
    """
    folder = Path(folder)
    states = [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]
    for state in states:
        if _checksum(state) is not None:
            return state
        warnings.warn(f"{state} is damaged or was not finished and is left aside", stacklevel=2)
    if states:
        raise ZooError(f"no saved state of {folder} is whole; start the run again with --out ANOTHER-FOLDER")
    return None


def _checksum(state: Path) -> Path | None:
    """The file, of the two of a run, that holds the checksum of `state`. None: it isn't whole, can't be read or isn't
    there.
    """
    files = [_digest_file(state.with_name(name)) for name in (PREVIOUS, LAST)]
    try:
        digest = sha256(state)
        return next(
            (file for file in files if file.is_file() and file.read_text(errors="replace").strip() == digest), None
        )
    except OSError:
        return None


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


class Clock(L.Callback):
    """Seconds of training that led to the present state, those before a resume included."""

    def __init__(self) -> None:
        self.before, self.start = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.before = state["seconds"]

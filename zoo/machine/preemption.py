"""Signals while training: they set a flag, and the run ends at the next step's end with its state saved."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import lightning as L
import torch

from zoo.errors import Terminated
from zoo.machine.resumable import SaveState

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143} | (
    {signal.SIGUSR1: 143} if hasattr(signal, "SIGUSR1") else {}
)  # what a shell says of a process


class Preemption(L.Callback):
    """SIGTERM, SIGINT and SIGUSR1 end the run at the end of the step, or in the middle of validation, once its state is
    saved.

    A handler only sets a flag: whatever it interrupts may hold locks, or be writing. All processes of a run agree on
    the flag, so that all leave at the same step. A second signal ends the process at once; the newest state that was
    saved is whole all the same.

    Use it as a context around `trainer.fit`: handlers are set when training starts, which is after Lightning has set
    its own, and those before are put back in any case. Outside the main thread, where Python allows no handlers, it
    sets none.
    """

    def __init__(self, saving: SaveState):
        self.saving, self.received, self.leaving = saving, 0, 0
        self.before: dict[int, Any] = {}
        self.group: Any = None

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.getsignal(number) for number in CODES}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            if handler is not None:  # one that wasn't set from Python can't be put back
                signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received:
            os._exit(CODES[signal.Signals(number)])
        self.received = number

    # ---- what Lightning calls --------------------------------------------------------------------
    def on_train_start(self, trainer: L.Trainer, *ignored: Any) -> None:
        for number in self.before:
            signal.signal(number, self._receive)
        if trainer.world_size > 1:  # over the CPU: asking a GPU at each step would wait for it
            self.group = torch.distributed.new_group(
                backend="gloo", timeout=getattr(trainer.strategy, "_timeout", None)
            )

    def on_train_batch_end(self, trainer: L.Trainer, *ignored: Any) -> None:
        if self.saving.stepped and not self.saving.at_end(trainer):
            self.leaving = self._agreed()
            if self.leaving:
                self.saving.save(
                    trainer
                )  # and leave at the next occasion: the step's point of the curves comes only now

    def on_train_batch_start(self, trainer: L.Trainer, *ignored: Any) -> None:
        self._leave(trainer)

    def on_validation_start(self, trainer: L.Trainer, *ignored: Any) -> None:
        self._leave(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *ignored: Any) -> None:
        if not self.saving.at_end(trainer):
            self.leaving = self._agreed()
            if self.leaving:
                self.saving.save(trainer)
                self._leave(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *ignored: Any) -> None:
        self._leave(trainer)

    def on_train_end(self, trainer: L.Trainer, *ignored: Any) -> None:
        self.leaving = self.leaving or self._agreed()
        if self.leaving:
            self.saving.write(trainer)
            self._leave(trainer)

    # ---- the end ---------------------------------------------------------------------------------
    def _agreed(self) -> int:
        """The signal that this process or another of the run received, or 0."""
        if self.group is None:
            return self.received
        flag = torch.tensor(self.received)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self.group)
        return int(flag)

    def _leave(self, trainer: L.Trainer) -> None:
        if self.leaving:
            number = signal.Signals(self.leaving)
            raise Terminated(
                f"{number.name} received: the state of step {trainer.global_step:,} is saved in {self.saving.path}; "
                "add --resume to go on with the run",
                CODES[number],
            )

"""The progress of a run: a bar where a person looks on, plain lines where a file does."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

import lightning as L

SMOOTH = 0.95  # share of the old value in the running means
SHOWN = ("loss", "knn", "spread", "effective_rank")


class Progress(L.Callback):
    """Steps, images a second, time left, the loss, and the share of the time that was spent waiting for data.

    On a terminal a rich bar; elsewhere a line at every tenth of the run, on standard error, without control characters.
    It is no Lightning progress bar, so use it with `enable_progress_bar=False`. The loss is read at most four times a
    second, since reading it waits for a GPU.
    """

    def __init__(self, description: str = "", quiet: bool = False):
        self.description, self.quiet = description, quiet
        self.bar = None
        self.waited = self.worked = 0.0
        self.rate: float | None = None
        self.images = self.first_step = self.tenths = 0
        self.start = self.last_end = self.last_shown = 0.0
        self.metrics: dict[str, float] = {}

    @property
    def facts(self) -> dict[str, float]:
        """images_per_second over the whole run, data_wait as a share 0 to 1, minutes."""
        seconds = max(self.waited + self.worked, 1e-9)
        return {
            "images_per_second": self.images / seconds,
            "data_wait": self.waited / seconds,
            "minutes": (time.perf_counter() - self.start) / 60,
        }

    # ---- what Lightning calls --------------------------------------------------------------------
    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.total = int(trainer.estimated_stepping_batches)
        self.first_step, self.tenths = trainer.global_step, 10 * trainer.global_step // max(self.total, 1)
        self.start = self.last_end = time.perf_counter()
        self.visible = not self.quiet and trainer.is_global_zero
        if self.visible and sys.stderr.isatty():
            self._open_bar(trainer.global_step)

    def on_train_batch_start(self, *ignored: Any) -> None:
        self.began = time.perf_counter()
        self.waited += self.began - self.last_end

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        now = time.perf_counter()
        images = len(batch["index"]) if isinstance(batch, dict) and "index" in batch else 1
        images *= trainer.world_size
        self.worked += now - self.began
        self.images += images
        rate = images / max(now - self.last_end, 1e-9)
        self.rate = rate if self.rate is None else SMOOTH * self.rate + (1 - SMOOTH) * rate
        if self.visible:
            self._show(trainer, now)
        self.last_end = time.perf_counter()  # what showing cost is nobody's waiting

    def on_validation_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.last_end = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._close_bar()
        if self.visible:
            facts, seen = (
                self.facts,
                [
                    f"{key} {float(trainer.callback_metrics[key]):.3g}"
                    for key in SHOWN[1:]
                    if key in trainer.callback_metrics
                ],
            )
            _say(
                f"{self.description}: {trainer.global_step - self.first_step:,} steps in {facts['minutes']:.1f} "
                "minutes, "
                f"{facts['images_per_second']:,.0f} images/s, {facts['data_wait']:.0%} of it waiting for data"
                + "".join(f", {fact}" for fact in seen)
            )

    def on_exception(self, trainer: L.Trainer, task: L.LightningModule, exception: BaseException) -> None:
        self._close_bar()

    # ---- drawing ---------------------------------------------------------------------------------
    def _open_bar(self, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.bar.start()
        self.line = self.bar.add_task(self.description, total=self.total, completed=done, facts="")

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _show(self, trainer: L.Trainer, now: float) -> None:
        step = trainer.global_step
        tenth = 10 * step // self.total
        if self.bar is None and tenth == self.tenths:
            return
        if self.bar is not None and now - self.last_shown < 0.25 and step < self.total:
            return
        self.last_shown, self.tenths = now, tenth
        self.metrics = {key: float(trainer.callback_metrics[key]) for key in SHOWN if key in trainer.callback_metrics}
        if self.bar is not None:
            self.bar.update(self.line, completed=step, facts=self._facts())
            return
        left = (self.total - step) * (now - self.start) / max(step - self.first_step, 1)
        _say(f"{self.description}: step {step:,} of {self.total:,}, {self._facts()}, {left / 60:.1f} minutes left")

    def _facts(self) -> str:
        wait = self.waited / max(self.waited + self.worked, 1e-9)
        return ", ".join(
            [f"{key} {value:.3g}" for key, value in self.metrics.items()]
            + [f"{self.rate or 0:,.0f} images/s", f"data wait {wait:.0%}"]
        )


def _say(text: str) -> None:
    """A line on standard error; a run goes on though nobody reads it any more (`| head`, a terminal that was
    closed).
    """
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)

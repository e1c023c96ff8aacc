"""Progress: a bar for who looks on, plain lines for a file, true numbers."""

from __future__ import annotations

import csv
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
import time

import lightning as L
import pytest
import run_example
import torch

import zoo
from zoo.machine.progress import Progress

LINE = re.compile(
    r"name: step (\d+) of (\d+), loss [0-9.e+-]+, ([0-9,]+) images/s, data wait (\d+)%, ([0-9.]+) minutes left"
)
LAST = re.compile(r"name: (\d+) steps in ([0-9.]+) minutes, ([0-9,]+) images/s, (\d+)% of it waiting for data")


def fit(progress: Progress, steps: int = 20, wait: float = 0.0, **trainer) -> L.Trainer:
    """A short training on plain Lightning, each batch of which comes late by `wait` seconds."""
    torch.manual_seed(0)
    data = zoo.create_data("digits", batch_size=32, size=16)
    task = zoo.create_task("autoencoder", zoo.create_backbone("test_resnet", size=16), code=8, width=8)
    if wait:
        loader = data.train_dataloader

        def slow():
            batches = loader()
            one_by_one = type(batches).__iter__
            batches.__class__ = type(
                "Slow",
                (type(batches),),
                {"__iter__": lambda self: (time.sleep(wait) or batch for batch in one_by_one(self))},
            )
            return batches

        data.train_dataloader = slow
    out = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[progress],
        limit_val_batches=0,
        **trainer,
    )
    out.fit(task, data)
    return out


def test_a_line_at_each_tenth(capsys):
    fit(Progress("name"), 40)
    out, err = capsys.readouterr()
    *lines, last = err.splitlines()
    found = [LINE.fullmatch(line) for line in lines]
    assert out == "" and all(found), err
    assert [int(match[1]) for match in found] == list(range(4, 41, 4)) and {match[2] for match in found} == {"40"}
    assert float(found[-1][5]) == 0 and LAST.fullmatch(last)[1] == "40"
    assert "\x1b" not in err and "\r" not in err


def test_the_last_line_says_what_was_seen_last(capsys, tmp_path):
    run_example.train(tmp_path / "quiet", trainer={"max_steps": 2, "validate_every": None})
    assert capsys.readouterr().err == ""
    run = zoo.pretrain(run_example.recipe(trainer={"max_steps": 2, "validate_every": None}), out=tmp_path / "run")
    last = capsys.readouterr().err.splitlines()[-1]
    seen = [row for row in csv.DictReader((run / "metrics.csv").read_text().splitlines()) if row["knn"]][-1]
    assert last.endswith(
        ", " + ", ".join(f"{key} {float(seen[key]):.3g}" for key in ("knn", "spread", "effective_rank"))
    )


def test_lines_of_a_resumed_run_and_of_accumulated_steps(capsys, tmp_path):
    """Tenths are of the whole run, and an inner batch of an accumulation is no step."""
    first = fit(Progress(quiet=True), 20, accumulate_grad_batches=2)
    first.save_checkpoint(tmp_path / "state.ckpt")
    capsys.readouterr()
    progress, data = Progress("name"), zoo.create_data("digits", batch_size=32, size=16)
    task = zoo.create_task("autoencoder", zoo.create_backbone("test_resnet", size=16), code=8, width=8)
    trainer = L.Trainer(
        max_steps=40,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[progress],
        limit_val_batches=0,
        accumulate_grad_batches=2,
    )
    trainer.fit(task, data, ckpt_path=tmp_path / "state.ckpt", weights_only=True)
    *lines, last = capsys.readouterr().err.splitlines()
    assert [int(LINE.fullmatch(line)[1]) for line in lines] == [24, 28, 32, 36, 40] and LAST.fullmatch(last)[1] == "20"
    assert progress.images == 39 * 32, (
        "of this part of the run, which is an epoch: its last step has one batch instead of two"
    )


def test_quiet_is_quiet(capsys):
    progress = Progress("name", quiet=True)
    fit(progress, 10)
    assert capsys.readouterr() == ("", "") and progress.images == 320 and progress.facts["images_per_second"] > 0


def test_the_numbers_are_true(capsys):
    """Of a run that waits for its data, told so in the facts and in the last line."""
    progress = Progress("name")
    began = time.perf_counter()
    fit(progress, 10, wait=0.5)
    seconds = time.perf_counter() - began
    facts = progress.facts
    assert 9 * 0.5 < 60 * facts["minutes"] < seconds
    spent = progress.waited + progress.worked
    assert spent <= seconds and facts["images_per_second"] == pytest.approx(320 / spent)
    assert progress.waited >= 9 * 0.5 and facts["data_wait"] == pytest.approx(progress.waited / spent)
    last = capsys.readouterr().err.splitlines()[-1]
    assert LAST.fullmatch(last)[4] == f"{100 * facts['data_wait']:.0f}" and int(
        LAST.fullmatch(last)[3].replace(",", "")
    ) == round(facts["images_per_second"])


def test_the_time_left_is_what_the_rest_will_take(capsys, monkeypatch):
    """With a clock that goes on by 6 seconds whenever it is looked at, and by 12 while something is shown."""
    clock = {"now": 0.0}

    def look() -> float:
        clock["now"] += 6
        return clock["now"]

    def show(self, *given):
        clock["now"] += 12
        shown(self, *given)

    shown = Progress._show
    monkeypatch.setattr("zoo.machine.progress.time.perf_counter", look)
    monkeypatch.setattr(Progress, "_show", show)
    progress, trainer = (
        Progress("name"),
        type(
            "Trainer",
            (),
            {
                "estimated_stepping_batches": 10,
                "global_step": 0,
                "is_global_zero": True,
                "world_size": 1,
                "callback_metrics": {"loss": torch.tensor(0.25)},
            },
        ),
    )
    progress.on_train_start(trainer, None)
    for step in range(1, 11):
        progress.on_train_batch_start()
        trainer.global_step = step
        progress.on_train_batch_end(trainer, None, None, {"index": range(60)}, 0)
    lines = capsys.readouterr().err.splitlines()
    # of a batch's 30 seconds it is waited for in 6 and worked on in 6; the other 18, for showing it, are nobody's
    # waiting
    assert lines[0] == "name: step 1 of 10, loss 0.25, 5 images/s, data wait 50%, 1.8 minutes left"
    assert lines[4] == "name: step 5 of 10, loss 0.25, 5 images/s, data wait 50%, 2.2 minutes left"
    assert lines[-1] == "name: step 10 of 10, loss 0.25, 5 images/s, data wait 50%, 0.0 minutes left"
    assert progress.facts["images_per_second"] == 5 and progress.facts["data_wait"] == 0.5


def test_saving_is_no_waiting_for_data(tmp_path, monkeypatch):
    """A disk that takes half a second for every state makes a run slower, but not its data late."""
    import zoo.train.run

    kept, save = [], L.Trainer.save_checkpoint
    monkeypatch.setattr(L.Trainer, "save_checkpoint", lambda self, path: time.sleep(0.5) or save(self, path))
    monkeypatch.setattr(zoo.train.run, "Progress", lambda **given: kept.append(Progress(**given)) or kept[-1])
    run_example.train(tmp_path / "run", trainer={"max_steps": 5, "save_every": 1})
    assert kept[0].worked > 4 * 0.5  # the last state is saved when training is over


def test_a_bar_on_a_terminal(monkeypatch):
    """What a terminal of 100 columns gets to see; afterwards the bar is gone and one line remains."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    got: list[bytes] = []

    def read():
        while True:
            try:
                data = os.read(parent, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            got.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    progress = Progress("name")
    try:
        with open(child, "w", buffering=1, closefd=False) as terminal, monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", terminal)
            fit(progress, 20)
    finally:
        os.close(child)
        reader.join()
        os.close(parent)
    text = b"".join(got).decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert progress.bar is None and "\x1b[?25l" in text and text.index("\x1b[?25l") < text.rindex("\x1b[?25h"), (
        "the cursor is hidden, then shown again"
    )
    assert "20/20" in plain and re.search(r"loss [0-9.]+, [0-9,]+ images/s, data wait \d+%", plain)
    assert "step 2 of 20" not in plain and LAST.search(plain)[1] == "20"


def test_a_bar_is_taken_away_when_training_fails(monkeypatch):
    class Terminal:
        def isatty(self):
            return True

        def write(self, text):
            return len(text)

        def flush(self):
            pass

    progress = Progress("name")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("zoo.tasks.image.autoencoder.Autoencoder.forward", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(progress, 5)
    assert progress.bar is None


def test_a_run_goes_on_though_nobody_reads_its_lines_any_more(monkeypatch):
    """As in `zoo pretrain RECIPE 2>&1 | head -1`."""
    end, start = os.pipe()
    os.close(end)
    with open(start, "w") as nowhere:
        monkeypatch.setattr(sys, "stderr", nowhere)
        progress = Progress()
        trainer = fit(progress, 20)
        monkeypatch.undo()
        assert trainer.global_step == 20
        with pytest.raises(BrokenPipeError):  # and there was nobody indeed
            nowhere.write("x")
            nowhere.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), nowhere.fileno())

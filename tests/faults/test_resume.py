"""R1 to R7: runs that are killed, or asked to end, at any moment; what goes on is the undisturbed run, to the last
bit.
"""

from __future__ import annotations

import csv
import os
import resource
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import torch
from killing import (
    assert_same,
    at,
    forked,
    generated,
    go_on,
    kill,
    killed,
    pretrain,
    recipe,
    state,
    undisturbed,
)  # noqa: F401

import zoo
from zoo.errors import Terminated, ZooError
from zoo.machine import resumable
from zoo.machine.resumable import SafeCheckpointIO, newest_good
from zoo.tasks.base import PretextTask

long = pytest.mark.faults
TASKS = [entry.name for entry in zoo.list_tasks() if entry.origin == "zoo"]


@pytest.fixture
def sweep(undisturbed, tmp_path):  # noqa: F811
    def run(values: dict, owner, name: str, moments) -> int:
        """Kills a run at each of these calls of owner.name and lets it go on. Gives how many of the calls there
        were.
        """
        for done, moment in enumerate(moments):
            out = tmp_path / f"{name}-{moment}"
            if not killed(values, out, owner, name, moment):
                return done
            assert_same(go_on(values, out), undisturbed(values))
        return len(moments)

    return run


# ---- R1: at every step ---------------------------------------------------------------------------


def test_r1_killed_within_an_epoch(sweep):
    assert sweep(recipe(), PretextTask, "training_step", [4]) == 1


@long
def test_r1_killed_at_every_step(sweep):
    values = recipe("simclr", max_steps=20, validate_every=2, save_every=1)
    assert sweep(values, PretextTask, "training_step", range(100)) == 20


@long
def test_r1_killed_at_every_step_and_saved_seldom(sweep):
    assert sweep(recipe(max_steps=14, save_every=4, validate_every=2), PretextTask, "training_step", range(100)) == 14


# ---- R2: at an epoch's end, in validation, while saving ------------------------------------------


@pytest.mark.parametrize(("name", "moment"), [("training_step", 3), ("validation_step", 1), ("validation_step", 3)])
def test_r2_killed_around_an_epochs_end(name, moment, sweep):
    """Before the first step of an epoch; in the validation between two; in the one that ends the run."""
    assert sweep(recipe(max_steps=6), PretextTask, name, [moment]) == 1


def test_r2_killed_in_a_look_within_an_epoch(sweep):
    """By default a run is looked at five times, wherever its epochs end: here after steps 2, 3, 5, 6 and 7 of three an
    epoch.
    """
    assert sweep(recipe(validate_every=None), PretextTask, "validation_step", [1]) == 1


@long
@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 2}, {"save_every": 3}, {"max_steps": -1, "max_epochs": 3}], ids=str
)
def test_r2_killed_at_any_moment_of_the_looks(changes, sweep):
    values = recipe(**{"validate_every": None} | changes)
    assert sweep(values, PretextTask, "validation_step", range(100)) >= 10
    assert sweep(values, PretextTask, "training_step", range(100)) >= 7


@long
@pytest.mark.parametrize("limit", [{"max_steps": 9}, {"max_steps": 8}, {"max_steps": -1, "max_epochs": 3}], ids=str)
@pytest.mark.parametrize("every", [1, 2])
def test_r2_killed_at_any_moment_of_validation(limit, every, sweep):
    count = sweep(recipe(validate_every=every, **limit), PretextTask, "validation_step", range(100))
    assert count >= 2
    ends = sweep(recipe(validate_every=every, **limit), L.LightningModule, "on_train_epoch_end", range(100))
    assert ends >= 2


CALLS = ("replace", "fsync", "unlink")


def _killed_while_saving(values: dict, out: Path, save: int, call: int) -> bool:
    """At system call number `call`, of those that the writer makes, of save number `save`. Whether there was one."""

    def count_calls() -> None:
        calls = iter(range(10**6))

        def counting(original):
            def counted(*arguments, **keywords):
                if next(calls) == call:
                    kill()
                return original(*arguments, **keywords)

            return counted

        for name in CALLS:
            setattr(os, name, counting(getattr(os, name)))

    def stop_counting() -> None:
        os._exit(7)  # that save is over

    def run() -> None:
        at(SafeCheckpointIO, "save_checkpoint", save, count_calls)
        at(resumable.SaveState, "on_train_batch_end", save + 1, stop_counting)
        pretrain(values, out)

    code = forked(run)
    assert code in (7, -signal.SIGKILL)
    return code != 7


@pytest.mark.parametrize("call", [1, 4, 6])
def test_r2_killed_between_two_calls_of_the_writer(call, tmp_path, undisturbed):
    values = recipe(max_steps=4, validate_every=0)
    assert _killed_while_saving(values, tmp_path / "run", 2, call)
    assert_same(go_on(values, tmp_path / "run"), undisturbed(values))


@long
@pytest.mark.parametrize("save", [0, 1, 2])
def test_r2_killed_between_any_two_calls_of_the_writer(save, tmp_path, undisturbed):
    """Save 2 is that of an epoch's last step."""
    values = recipe(max_steps=5)
    whole = undisturbed(values)
    for call in range(100):
        run = tmp_path / f"run-{call}"
        if not _killed_while_saving(values, run, save, call):
            break
        assert_same(go_on(values, run), whole)
    assert call > 6


def _killed_at_byte(values: dict, out: Path, save: int, byte: int) -> int:
    """By the kernel, when a file grows beyond `byte` in save number `save`."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (byte, resource.RLIM_INFINITY))

    return forked(lambda: (at(SafeCheckpointIO, "save_checkpoint", save, limit), pretrain(values, out)))


def test_r2_killed_in_the_middle_of_a_write(tmp_path, undisturbed):
    values = recipe(max_steps=4, validate_every=0)
    assert _killed_at_byte(values, tmp_path / "run", 2, 100_000) == -signal.SIGXFSZ
    assert state(tmp_path / "run")["global_step"] == 2
    assert_same(go_on(values, tmp_path / "run"), undisturbed(values))


@long
def test_r2_killed_at_any_byte_of_a_write(tmp_path, undisturbed):
    values = recipe(max_steps=4, validate_every=0)
    whole = undisturbed(values)
    size = (whole / "last.ckpt").stat().st_size
    for byte in (0, 1, 63, 4096, size // 3, size // 2, size - 4096, size - 1):
        for save in (0, 2):
            run = tmp_path / f"run-{save}-{byte}"
            assert _killed_at_byte(values, run, save, byte) == -signal.SIGXFSZ
            assert_same(go_on(values, run), whole)


# ---- R3: accumulated gradients; every task -------------------------------------------------------


def test_r3_killed_while_gradients_are_added_up(sweep):
    """Steps of two batches and of one, which is what is left of an epoch of three."""
    assert sweep(recipe(max_steps=5, accumulate=2), PretextTask, "training_step", [4]) == 1


@long
@pytest.mark.parametrize("accumulate", [2, 4])
def test_r3_killed_at_every_batch_while_gradients_are_added_up(accumulate, sweep):
    values = recipe("simclr", max_steps=6 if accumulate == 2 else 3, accumulate=accumulate, validate_every=2)
    assert sweep(values, PretextTask, "training_step", range(100)) == 9


@long
@pytest.mark.parametrize("task", TASKS)
def test_r3_every_task_killed_at_any_step(task, sweep):
    assert sweep(recipe(task, max_steps=5), PretextTask, "training_step", range(100)) == 5


@long
@pytest.mark.parametrize(
    ("task", "arguments"),
    [("deepcluster", {"clusters": 4, "memory": 6, "every": 1}), ("moco", {"version": "v3"})],
    ids=["clusters", "v3"],
)
def test_r3_what_defaults_do_not_reach_killed_at_any_step(task, arguments, sweep):
    """A clustering that really happens, and the form without a queue."""
    values = recipe(task, max_steps=5)
    values["task"] |= arguments
    assert sweep(values, PretextTask, "training_step", range(100)) == 5


# ---- R4: twice in one epoch ----------------------------------------------------------------------


def test_r4_killed_twice_in_one_epoch(tmp_path, undisturbed):
    values = recipe(max_steps=6)
    assert killed(values, tmp_path / "run", PretextTask, "training_step", 4)
    assert killed(values, tmp_path / "run", PretextTask, "training_step", 1, resume=True)
    assert_same(go_on(values, tmp_path / "run"), undisturbed(values))


@long
def test_r4_killed_again_and_again(tmp_path, undisturbed):
    """Each time one step further, and once before anything new was saved."""
    values = recipe("simclr", max_steps=9)
    assert killed(values, tmp_path / "run", PretextTask, "training_step", 1)
    assert killed(values, tmp_path / "run", PretextTask, "training_step", 0, resume=True)
    for _ in range(6):
        assert killed(values, tmp_path / "run", PretextTask, "training_step", 1, resume=True)
    assert killed(values, tmp_path / "run", PretextTask, "validation_step", 1, resume=True)
    assert_same(go_on(values, tmp_path / "run"), undisturbed(values))


# ---- R5: other facts -----------------------------------------------------------------------------


def test_r5_what_the_run_is_made_of_has_changed(tmp_path, monkeypatch, undisturbed):
    values, run = recipe(max_steps=3, validate_every=0), tmp_path / "run"
    assert killed(values, run, PretextTask, "training_step", 2)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(
        ZooError,
        match="was begun with data.batch_size 4, and the recipe now says 6; resume it unchanged, or start a new run "
        "with --out",
    ):
        pretrain(values | {"data": values["data"] | {"batch_size": 6}}, run, resume=True)
    load = zoo.data.module.load_data
    with monkeypatch.context() as patched:
        patched.setattr("zoo.data.module.load_data", lambda *given, **also: _other_fingerprint(load(*given, **also)))
        with pytest.raises(
            ZooError,
            match="the data of .*run have changed since the run began, so it can't be resumed; start a new one with "
            "--out",
        ):
            pretrain(values, run, resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert_same(go_on(values, run), undisturbed(values))


def _other_fingerprint(data):
    from dataclasses import replace

    return replace(data, fingerprint="another")


# ---- R6, R7: signals -----------------------------------------------------------------------------

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


def _signalled(values: dict, out: Path, number: int, owner, name: str, moment: int) -> int:
    return forked(lambda: (at(owner, name, moment, lambda: os.kill(os.getpid(), number)), pretrain(values, out)))


@pytest.mark.parametrize("number", SIGNALS)
def test_r6_a_signal_in_a_step(number, tmp_path, undisturbed):
    """The step is finished and saved, though saving isn't due for long."""
    values = recipe(save_every=1000)
    assert _signalled(values, tmp_path / "run", number, PretextTask, "training_step", 4) == SIGNALS[number]
    assert state(tmp_path / "run")["global_step"] == 5 and newest_good(tmp_path / "run").name == "last.ckpt"
    assert not (tmp_path / "run/checkpoint").exists()
    assert_same(go_on(values, tmp_path / "run"), undisturbed(values))


MOMENTS = [
    (PretextTask, "validation_step", 1, 3),
    (PretextTask, "validation_step", 2, 6),
    (SafeCheckpointIO, "save_checkpoint", 2, 3),
    ("zoo.data.module", "take", 6, 5),
    (PretextTask, "after_step", 5, 6),
    (L.LightningModule, "on_train_epoch_end", 0, 4),
    (PretextTask, "training_step", 6, 7),
]


def _moments(long_too: bool) -> list:
    return [
        pytest.param(*moment, marks=[] if number in (0, 2) else [long], id=f"{moment[1]}-{moment[2]}")
        for number, moment in enumerate(MOMENTS)
    ]


@pytest.mark.parametrize(("owner", "name", "moment", "step"), _moments(True))
def test_r6_a_signal_in_validation_while_saving_or_waiting_for_data(owner, name, moment, step, tmp_path, undisturbed):
    owner = __import__("sys").modules[owner] if isinstance(owner, str) else owner
    values = recipe(save_every=1 if name == "save_checkpoint" else 1000)
    assert _signalled(values, tmp_path / "run", signal.SIGTERM, owner, name, moment) == 143
    assert state(tmp_path / "run")["global_step"] == step
    assert_same(go_on(values, tmp_path / "run"), undisturbed(values))


@pytest.mark.parametrize("moment", [1, pytest.param(0, marks=long), pytest.param(9, marks=long)])
def test_r6_a_signal_in_a_look_within_an_epoch(moment, tmp_path, undisturbed):
    values = recipe(save_every=1000, validate_every=None)
    assert _signalled(values, tmp_path / "run", signal.SIGTERM, PretextTask, "validation_step", moment) == 143
    assert state(tmp_path / "run")["global_step"] == (7 if moment == 9 else 2)
    assert_same(go_on(values, tmp_path / "run"), undisturbed(values))


@long
@pytest.mark.parametrize("accumulate", [1, 2])
def test_r6_a_signal_at_every_batch(accumulate, tmp_path, undisturbed):
    values = recipe("simclr", max_steps=6, accumulate=accumulate, save_every=1000, validate_every=2)
    whole = undisturbed(values)
    for moment in range(6 if accumulate == 1 else 9):
        run = tmp_path / f"run-{moment}"
        assert _signalled(values, run, signal.SIGTERM, PretextTask, "training_step", moment) == 143
        assert_same(go_on(values, run), whole)


def _records(file: Path) -> Iterator[bytes]:
    """Of wandb's file: blocks of 32 KiB of pieces, each with its checksum, its length and whether it is whole, a first,
    a middle or a last.
    """
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if place % 32768 > 32768 - 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def _logged(kind: str, run: Path) -> list[int]:
    """The steps whose loss the logger has on the disk."""
    if kind == "csv":
        return [int(row["step"]) for row in csv.DictReader((run / "metrics.csv").open()) if row["loss"]]
    if kind == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return [point.step for point in EventAccumulator(str(run / "tensorboard")).Reload().Scalars("loss")]
    from wandb.proto.wandb_internal_pb2 import Record

    records = [Record.FromString(data) for data in _records(next(run.glob("wandb/offline-run-*/run-*.wandb")))]
    assert records[-1].HasField("exit"), "the run was not closed"
    points = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item} for record in records
    ]
    return [int(point["trainer/global_step"]) for point in points if "loss" in point]


@pytest.mark.parametrize("kind", ["csv", "tensorboard", "wandb"])
def test_r6_loggers_are_flushed(kind, tmp_path, monkeypatch):
    """A signal in the fifth step: the points of all five are on the disk when the process has ended, though its atexit
    functions never ran.
    """
    if kind != "csv":
        pytest.importorskip(kind)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))

    def run() -> None:
        at(PretextTask, "training_step", 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        zoo.pretrain(recipe(validate_every=0), out=tmp_path / "run", logger=kind, progress=False)

    assert forked(run) == 143
    assert _logged(kind, tmp_path / "run") == list(range(5))


def test_r6_from_python_a_signal_is_an_exception_that_says_where_the_state_is(tmp_path, monkeypatch):
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    for number, expected in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)):
        run = tmp_path / number.name
        with monkeypatch.context() as patched:
            step = PretextTask.training_step
            patched.setattr(
                PretextTask, "training_step", lambda *given: (os.kill(os.getpid(), number), step(*given))[1]
            )
            with pytest.raises(
                expected,
                match=rf"^{number.name} received: the state of step 1 is saved in .*last\.ckpt; add --resume to go on",
            ) as caught:
                pretrain(recipe(), run)
        assert expected is KeyboardInterrupt or (caught.value.code == 143 and isinstance(caught.value, SystemExit))
        assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_r6_handlers_are_put_back_after_an_error_and_left_alone_in_a_thread(tmp_path, monkeypatch):
    handlers, seen, errors = {number: signal.getsignal(number) for number in SIGNALS}, [], []
    monkeypatch.setattr(
        PretextTask,
        "training_step",
        lambda *given: seen.append({number: signal.getsignal(number) for number in SIGNALS}) or 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        pretrain(recipe(), tmp_path / "run")
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers and not set(seen[0].values()) & set(
        handlers.values()
    )

    def in_a_thread() -> None:
        try:
            pretrain(recipe(), tmp_path / "thread")
        except ZeroDivisionError as error:
            errors.append(error)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert len(errors) == 1 and seen[1] == handlers


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_r7_a_second_signal_ends_at_once(first, second, tmp_path, undisturbed):
    """In the middle of the step in which the first came, of which nothing is saved."""
    values = recipe()

    def twice() -> None:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)

    assert (
        forked(lambda: (at(PretextTask, "training_step", 4, twice), pretrain(values, tmp_path / "run")))
        == SIGNALS[second]
    )
    assert state(tmp_path / "run")["global_step"] == 4
    assert_same(go_on(values, tmp_path / "run"), undisturbed(values))


@long
def test_r7_a_second_signal_while_the_state_is_written(tmp_path, undisturbed):
    values = recipe(save_every=2)
    whole = undisturbed(values)
    for call in range(8):
        run = tmp_path / f"run-{call}"

        def signals(call: int = call) -> None:
            at(PretextTask, "training_step", 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
            at(
                SafeCheckpointIO,
                "save_checkpoint",
                2,
                lambda: [at(os, name, call, lambda: os.kill(os.getpid(), signal.SIGTERM)) for name in ("fsync",)],
            )

        code = forked(lambda: (signals(), pretrain(values, run)))
        assert code == 143 and isinstance(torch.load(newest_good(run), weights_only=True)["global_step"], int)
        assert_same(go_on(values, run), whole)

"""Small runs that are really killed: each is forked from the test's process, which has imported everything already."""

from __future__ import annotations

import csv
import ctypes
import functools
import json
import os
import platform
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_example import no_hang, sentence

import zoo
from zoo.contract.small import SIZES, backbone_for
from zoo.data.generated import generate
from zoo.data.info import DataInfo
from zoo.machine.cpu import give_memory_back
from zoo.registry import find_task

BATCH, BATCHES = 4, 3  # pictures of a batch, batches of an epoch


@functools.cache
def _backbone(task: str) -> dict:
    return backbone_for(find_task(task), {})


def recipe(task: str = "autoencoder", seed: int = 0, **trainer: Any) -> dict:
    """Three batches an epoch, two of validation, a save at each step; on a backbone that the task takes."""
    return {
        "seed": seed,
        "data": {"name": "digits", "batch_size": BATCH, "size": SIZES[0]},
        "backbone": dict(_backbone(task)),
        "task": {"name": task},
        "optim": {"lr": 2e-3},
        "trainer": {"max_steps": 7, "validate_every": 1, "save_every": 1, "accelerator": "cpu"} | trainer,
    }


@pytest.fixture(autouse=True)
def generated(monkeypatch, tmp_path):
    """The data are coloured blobs with every field that a task needs. Nothing is downloaded, and there is no waiting
    for a GPU.
    """
    fields = tuple(
        dict.fromkeys(
            ("image", "label", *(field for entry in zoo.list_tasks() if entry.origin == "zoo" for field in entry.needs))
        )
    )
    info = DataInfo(
        name="digits",
        fields=fields,
        channels=3,
        size=SIZES[0],
        classes=("a", "b", "c"),
        version="1",
        license="CC0-1.0",
        attribution="nobody",
        homepage="",
        splits={"train": 12, "validation": 6, "test": 6},
        summary="coloured blobs",
    )
    monkeypatch.setattr(
        "zoo.data.module.load_data", lambda name, size, **ignored: generate(info, size=size, images=2 * BATCH * BATCHES)
    )
    monkeypatch.setattr("zoo.train.fit.data_info", lambda name, settings: info)
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


_undisturbed: dict[str, Path] = {}


@pytest.fixture
def undisturbed(generated, tmp_path_factory) -> Callable[[dict], Path]:
    """The run of a recipe that nothing happens to; once, whichever tests ask for it."""

    def run(values: dict) -> Path:
        key = json.dumps(values, sort_keys=True)
        if key not in _undisturbed:
            _undisturbed[key] = pretrain(values, tmp_path_factory.mktemp("undisturbed") / "run")
        return _undisturbed[key]

    return run


def pretrain(values: dict, out: Path, resume: bool = False) -> Path:
    return zoo.pretrain(values, out=out, resume=resume, progress=False)


def forked(run: Callable[[], Any]) -> int:
    """Exit code of a fork of this process that runs `run`, negative if a signal ended it; 0 where it returned, 99 where
    it raised.
    """
    child = os.fork()
    if child == 0:
        code = 99
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1), os.dup2(quiet, 2)
            run()
            code = 0
        except SystemExit as error:
            code = error.code
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def within(room: int, call: Callable[[], Any], told: Path) -> str:
    """The sentence in which `call` is refused, in a fork that may have so many bytes more than this process, and that
    writes it into `told`.
    """

    def run() -> None:
        give_memory_back()  # what earlier training left free would be room too
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
        told.write_text(sentence(call))

    with no_hang(120):
        assert forked(run) == 0, "it was not refused"
    return told.read_text()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(owner: Any, name: str, moment: int, what: Callable[[], None] = kill) -> None:
    """From here on, call number `moment` of owner.name, counted from 0, begins with `what`."""
    original, calls = getattr(owner, name), iter(range(10**9))

    def call(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == moment:
            what()
        return original(*arguments, **keywords)

    setattr(owner, name, call)


CALLS = {"x86_64": {"fsync": 74, "fdatasync": 75}, "aarch64": {"fsync": 82, "fdatasync": 83}}


def refused(code: int, *names: str) -> None:
    """From here on the kernel itself answers these calls of this thread with an error, for good: to be used in forks.

    Raises OSError or KeyError where it takes no such rule (seccomp).
    """
    numbers = [CALLS[platform.machine()][name] for name in names]
    load, equal, answer, go, error = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000
    rule = [
        (load, 0, 0, 0),
        *((equal, len(numbers) - k, 0, number) for k, number in enumerate(numbers)),
        (answer, 0, 0, go),
        (answer, 0, 0, error | code),
    ]
    code_of_rule = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in rule))

    class Rule(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(Rule(len(rule), ctypes.addressof(code_of_rule)))):
        raise OSError(ctypes.get_errno(), "no rule for calls is taken here")


def killed(values: dict, out: Path, owner: Any, name: str, moment: int, resume: bool = False) -> bool:
    """Whether call number `moment` of owner.name came, and the run was killed there."""
    code = forked(lambda: (at(owner, name, moment), pretrain(values, out, resume)))
    assert code in (0, -signal.SIGKILL), f"the run ended with {code}"
    return code != 0


def go_on(values: dict, out: Path) -> Path:
    """What anybody does after a kill: the same command again, with --resume."""
    return pretrain(values, out, resume=(out / "recipe.yaml").is_file())


# ---- comparing -----------------------------------------------------------------------------------


def state(run: Path) -> dict:
    return torch.load(run / "last.ckpt", weights_only=True)


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list, tuple)):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(part, f"{key}.{name}")
    else:
        yield key, value


def bits(value: Any) -> Any:
    return (
        (value.dtype, value.shape, value.contiguous().numpy().tobytes()) if isinstance(value, torch.Tensor) else value
    )


def curves(run: Path) -> list[dict]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(run: Path, undisturbed: Path) -> None:
    """Weights, buffers, optimizer state, counts and curves: to the last bit."""
    states = [state(folder) for folder in (run, undisturbed)]
    for part in ("state_dict", "optimizer_states", "global_step"):
        ours, theirs = (dict(flat(found[part], part)) for found in states)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if bits(ours[key]) != bits(theirs[key])] == []
    batches = [found["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] for found in states]
    assert batches[0] == batches[1], "an epoch was skipped or repeated"
    assert curves(run) == curves(undisturbed)
    files = [{path.name for path in (folder / "checkpoint").iterdir()} for folder in (run, undisturbed)]
    assert (
        files[0] == files[1]
        and (run / "checkpoint/model.safetensors").read_bytes()
        == (undisturbed / "checkpoint/model.safetensors").read_bytes()
    )


def assert_finite(run: Path) -> None:
    """Whatever was saved is finite. (A run may end before it has saved anything.)"""
    for name in ("last.ckpt", "previous.ckpt"):
        if (run / name).is_file():
            found = torch.load(run / name, weights_only=True)
            assert [
                key
                for key, value in flat([found["state_dict"], found["optimizer_states"]])
                if isinstance(value, torch.Tensor) and not value.isfinite().all()
            ] == []
    assert not (run / "checkpoint").exists()

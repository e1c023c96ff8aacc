"""R17, R18 and the processes' part of R5: runs of two processes, started as people start them, and what happens when
one is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
import torch
import yaml
from launching import TORCHRUN, children, command, finish, free_port, may_make_hosts, plain, srun, start, torchrun
from PIL import Image
from run_example import weights

import zoo
from zoo.card import read_card
from zoo.data.datasets import load_data
from zoo.data.shards.writer import write_shards
from zoo.errors import ZooError
from zoo.machine import ranks
from zoo.machine.resumable import newest_good

# neither 3 nor anything else divides the digits: the last training batch is left out, and the last of validation is
# short
SMALL = {
    "data": {"name": "digits", "batch_size": 50, "size": 16},
    "backbone": {"name": "test_resnet"},
    "task": {"name": "simclr", "hidden": 32, "outputs": 16},
    "trainer": {
        "max_steps": 14,
        "validate_every": 1,
        "accelerator": "cpu",
        "devices": 2,
        "save_every": 2,
        "timeout": 60.0,
    },
}


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ZOO_HOME", str(folder / "home"))
        patched.chdir(folder)
        Path("small.yaml").write_text(yaml.safe_dump(SMALL))
        yield folder


@pytest.fixture(scope="module")
def run(here) -> tuple[Path, str, str]:
    """A run that torchrun started, and what it said."""
    code, out, err = torchrun(
        "--nproc-per-node", "2", "-m", "zoo.cli", "pretrain", "small.yaml", "--out", "run", "--no-progress", "--json"
    )
    assert code == 0, err
    return here / "run", out, err


def test_r18_splits_that_nothing_divides(run):
    """An incomplete last batch, in training and in validation, holds nobody up; and only one process writes and
    speaks.
    """
    folder, out, err = run
    splits = load_data("digits", 16).splits
    assert len(splits["train"]) % 100 and len(splits["train"]) // 100 < 14 and len(splits["validation"]) % 100
    assert json.loads(out) == {"run": "run", "checkpoint": "run/checkpoint"} and "Warning" not in err
    card = read_card(folder / "checkpoint")
    assert card["steps"] == 14 and card["samples_seen"] == 14 * 100 and card["check"] is not None
    assert json.loads((folder / "run.json").read_text())["processes"] == 2
    curves = (folder / "metrics.csv").read_text().splitlines()
    assert {"knn", "spread", "effective_rank", "val_loss", "loss"} <= set(curves[0].split(","))
    steps = [line.split(",")[curves[0].split(",").index("step")] for line in curves[1:]]
    assert len(steps) == len(set(steps)) + sum(a == b for a, b in zip(steps, steps[1:])), (
        "two processes wrote one file of curves"
    )


def test_a_run_equals_itself_whoever_starts_it(run):
    """To the last bit: by Lightning, which starts the second process itself."""
    code, out, err = finish([start(command(["zoo", "pretrain", "small.yaml", "--out", "again"]))])[0]
    assert code == 0 and out.count("is the checkpoint") == 1, err
    assert weights(Path("again")) == weights(run[0])


def test_r5_another_number_of_processes(run):
    with pytest.raises(
        ZooError,
        match="run was begun with 2 processes and this would go on with 1, which is another order .* start 2, by "
        "trainer.devices",
    ):
        zoo.pretrain("small.yaml", out="run", resume=True, progress=False, **{"trainer.devices": 1})


def test_as_many_as_the_recipe_says(monkeypatch):
    for key, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "zoo", "SLURM_NTASKS_PER_NODE": "4"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(
        ZooError,
        match="SLURM runs this as one process, and the recipe says trainer.devices 2 .* srun --nodes 3 "
        "--ntasks-per-node 2",
    ):
        ranks.rank(2, 3)
    for key, value in {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(
        ZooError, match="srun started 2 processes on each of 2 machines, .*; give --trainer.devices 2 --trainer.nodes 2"
    ):
        zoo.pretrain("small.yaml", out="never", progress=False)
    assert ranks.rank(2, 2) == 3 and not Path("never").exists()
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # an interactive job
    assert ranks.rank(1, 1) == ranks.rank(2, 1) == 0
    monkeypatch.setenv("NODE_RANK", "1")
    assert ranks.rank(2, 2) == 2


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(
        ZooError,
        match=r"trainer.devices is 2, and torch finds 1 GPU\(s\) on this machine; .* or trainer.accelerator to cpu",
    ):
        zoo.pretrain("small.yaml", out="never", progress=False, **{"trainer.accelerator": "gpu"})
    assert not Path("never").exists()


# ---- one of two is lost --------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def endless(out: Path, said: TextIO) -> subprocess.Popen:
    """A run of two processes that wait five seconds for each other and never come to an end by themselves."""
    words = [
        "zoo",
        "pretrain",
        "small.yaml",
        "--out",
        str(out),
        "--trainer.timeout",
        "5",
        "--trainer.max_steps",
        "1000000",
        "--trainer.validate_every",
        "0",
    ]
    return subprocess.Popen(command(words), env=plain(), stdout=said, stderr=said)


def until_saved(out: Path, process: subprocess.Popen) -> None:
    """Waits until it has saved twice."""
    until = time.monotonic() + 200
    while not (out / "previous.ckpt").exists():
        assert process.poll() is None and time.monotonic() < until, "it ended, or saved nothing"
        time.sleep(0.02)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_r17_a_process_is_lost(number, here):
    out, said = Path(f"lost-{number.name}"), open(f"lost-{number.name}.txt", "w+")
    process = endless(out, said)
    try:
        until_saved(out, process)
        (second,) = children(process.pid)
        os.kill(second, number)
        lost = time.monotonic()
        assert process.wait(timeout=60) == 2
        assert time.monotonic() - lost < (10 if number == signal.SIGKILL else 5 + 15), (
            "of a killed one it learns at once, of a stopped one after the time-out"
        )
    finally:
        for pid in (*children(process.pid), process.pid) if process.poll() is None else ():
            os.kill(pid, signal.SIGKILL)
    text = Path(said.name).read_text()
    assert (
        "zoo: process 0 of 2 lost another one, which ended or didn't answer for 5 seconds (trainer.timeout)" in text
        and "--resume" in text
    )
    assert "Traceback" not in text and not alive(second), "an orphan"
    assert "process 0 was here, the last call at the end:" in text and re.search(
        r'File ".*", line \d+, in fit', text
    ), "nothing says where the process waited"
    if number == signal.SIGSTOP:
        assert "most recent call first" in text and "all_reduce" in text, "nothing says where the process waited"
    assert newest_good(out) is not None


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_r17_the_first_process_is_lost(number, here):
    """It had started the other one, which ends all the same."""
    out, said = Path(f"first-{number.name}"), open(f"first-{number.name}.txt", "w+")
    process = endless(out, said)
    second = None
    try:
        until_saved(out, process)
        (second,) = children(process.pid)
        os.kill(process.pid, number)
        until = time.monotonic() + 30
        while alive(second):
            assert time.monotonic() < until, "the other one waits for ever"
            time.sleep(0.1)
    finally:
        for pid in (process.pid, *([second] if second and alive(second) else [])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    assert "process 1 of 2 lost another one" in Path(said.name).read_text() and newest_good(out) is not None


# ---- shards, each process its own part -----------------------------------------------------------


@pytest.mark.faults
def test_r24_two_processes_over_shards_are_killed_and_go_on(here):
    """In the middle of an epoch, both at once: resumed, they end in the undisturbed run's weights."""
    draw = np.random.default_rng(0)
    Path("pictures").mkdir()
    for number in range(90):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"pictures/{number:02}.png")
    words = command(
        [
            "zoo",
            "pretrain",
            "small.yaml",
            "--data.name",
            f"shards:{write_shards('pictures', 'shards', 20)}",
            "--data.batch_size",
            "8",
            "--trainer.max_steps",
            "40",
            "--trainer.save_every",
            "3",
        ]
    )
    (whole,) = finish([start([*words, "--out", "sharded"])])
    assert whole[0] == 0, whole[2]
    process = subprocess.Popen([*words, "--out", "sharded-cut"], env=plain(), start_new_session=True)
    until_saved(Path("sharded-cut"), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    state = torch.load(newest_good(Path("sharded-cut")), weights_only=True)
    assert 3 <= state["global_step"] < 40
    (resumed,) = finish([start([*words, "--out", "sharded-cut", "--resume"])])
    assert resumed[0] == 0, resumed[2]
    assert weights(Path("sharded-cut")) == weights(Path("sharded"))


# ---- other ways to start -------------------------------------------------------------------------


@pytest.mark.faults
def test_srun(run):
    """SLURM's variables, two machines with a process each."""
    words = ["zoo", "pretrain", "small.yaml", "--out", "slurm", "--trainer.devices", "1", "--trainer.nodes", "2"]
    results = srun(2, 1, *command(words))
    assert [code for code, _, _ in results] == [0, 0], results
    assert weights(Path("slurm")) == weights(run[0])


@pytest.mark.faults
@pytest.mark.skipif(not may_make_hosts(), reason="making network namespaces isn't permitted here")
def test_two_hosts(run):
    """Two network namespaces with a cable between them: processes that reach each other by address alone."""
    names = [f"zoo{os.getpid()}a", f"zoo{os.getpid()}b"]
    try:
        for command_line in (
            *(f"netns add {name}" for name in names),
            f"link add v0 netns {names[0]} type veth peer name v0 netns {names[1]}",
            *(f"-n {name} addr add 10.213.7.{number}/24 dev v0" for number, name in enumerate(names, 1)),
            *(f"-n {name} link set {link} up" for name in names for link in ("v0", "lo")),
        ):
            made = subprocess.run(["ip", *command_line.split()], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"ip {command_line}: {made.stderr}")
        port = str(free_port())
        results = finish(
            [
                start(
                    [
                        "ip",
                        "netns",
                        "exec",
                        name,
                        *TORCHRUN,
                        "--nnodes",
                        "2",
                        "--node-rank",
                        str(number),
                        "--nproc-per-node",
                        "1",
                        "--master-addr",
                        "10.213.7.1",
                        "--master-port",
                        port,
                        "-m",
                        "zoo.cli",
                        "pretrain",
                        "small.yaml",
                        "--out",
                        "hosts",
                        "--no-progress",
                        "--trainer.devices",
                        "1",
                        "--trainer.nodes",
                        "2",
                    ],
                    GLOO_SOCKET_IFNAME="v0",
                )
                for number, name in enumerate(names)
            ]
        )
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
    assert [code for code, _, _ in results] == [0, 0], results
    assert weights(Path("hosts")) == weights(run[0])


OWN = """
import json, os, sys
import datetime
import lightning as L, torch
from lightning.pytorch.strategies import DDPStrategy
import zoo

class Pictures(torch.utils.data.Dataset):
    def __init__(self, count): self.count = count
    def __len__(self): return self.count
    def __getitem__(self, row):
        return {"image": torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(row)), "row": row}

class Rows(L.Callback):
    def __init__(self): self.seen = []
    def on_train_batch_start(self, trainer, task, batch, number): self.seen.append(batch["row"].tolist())

def fit(*counts, **more):
    torch.manual_seed(0)
    task, rows = zoo.create_task("simclr", zoo.create_backbone("test_resnet", size=32)), Rows()
    loaders = [torch.utils.data.DataLoader(Pictures(pictures), batch_size=4) for pictures in counts]
    wait = DDPStrategy(timeout=datetime.timedelta(seconds=60))
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy=wait, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False, callbacks=[rows], **more)
    try:
        trainer.fit(task, *loaders)
        return rows.seen
    except zoo.errors.ZooError as error:
        return str(error)

rank = int(os.environ["RANK"])
found = [fit(19), fit(8 - rank, use_distributed_sampler=False), fit(12 - 4 * rank, use_distributed_sampler=False),
         fit(8, 8 - 4 * rank, num_sanity_val_steps=0, use_distributed_sampler=False)]
open(f"own-{rank}.json", "w").write(json.dumps(found))
"""  # noqa: E501


@pytest.mark.faults
def test_r18_a_loader_of_ones_own(here):
    """Lightning's sampler gives rank r the rows r, r + 2, ..., the order that losses rely on; batches of different
    sizes, or not as many, are refused by all.
    """
    Path("own.py").write_text(OWN)
    code, _, err = torchrun("--nproc-per-node", "2", "own.py")
    assert code == 0, err
    (first, *refused), (second, *refused_too) = (json.loads(Path(f"own-{rank}.json").read_text()) for rank in range(2))
    rows = [[row for pair in zip(a, b, strict=True) for row in pair] for a, b in zip(first, second, strict=True)]
    assert {row for batch in rows for row in batch} == set(range(19)) and len(rows) == 3 and len(rows[-1]) == 4
    mend = "and they have to have as many each; let Lightning put its sampler into the loader, or"
    assert (
        refused
        == refused_too
        == [
            f"the processes have batches of 4 and 3 pictures, {mend} give it drop_last=True",
            f"the processes have 3 and 2 batches of training, {mend} have yours give every process as many",
            f"the processes have 2 and 1 batches of validation, {mend} have yours give every process as many",
        ]
    )

"""Training in several processes: who started them, which one this is, and what happens when one of them doesn't
answer.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import DDPStrategy

from zoo.errors import ZooError

_set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # public since torch 2.14
MEETING = datetime.timedelta(seconds=300)
LOST = re.compile(r"gloo|nccl|timed out|closed by peer|reset by peer|broken pipe|timeout", re.IGNORECASE)
SET = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
)  # by Lightning, in the environment, when it starts processes


def started() -> tuple[str, int, int, int] | None:
    """What started this process as one of several, its rank, processes on each machine, and machines; None where
    nothing did.
    """
    env = os.environ
    if TorchElasticEnvironment.detect():
        each = int(env["LOCAL_WORLD_SIZE"])
        return "torchrun", int(env["RANK"]), each, int(env["WORLD_SIZE"]) // each
    if SLURMEnvironment.detect() and "SLURM_STEP_NUM_TASKS" in env:
        machines = int(env.get("SLURM_STEP_NUM_NODES", 1))
        return "srun", int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]) // machines, machines
    return None


def rank(devices: int, nodes: int) -> int:
    """The number of this process among `devices` * `nodes`, known before they have met; 0 writes all that is written.

    Raises ZooError when other numbers of processes were started than the recipe says.
    """
    if (found := started()) is not None:
        by, number, each, machines = found
        if (each, machines) != (devices, nodes):
            raise ZooError(
                f"{by} started {each} processes on each of {machines} machines, and the recipe says trainer.devices "
                f"{devices} and "
                f"trainer.nodes {nodes}; give --trainer.devices {each} --trainer.nodes {machines}, or start as many"
            )
        return number
    if devices * nodes > 1 and SLURMEnvironment.detect():
        raise ZooError(
            f"SLURM runs this as one process, and the recipe says trainer.devices {devices} and trainer.nodes {nodes}; "
            f"begin the command with srun --nodes {nodes} --ntasks-per-node {devices}"
        )
    if devices * nodes > 1 and hasattr(sys, "ps1"):
        raise ZooError(
            f"trainer.devices is {devices}, and a notebook or prompt can't start processes that train with it; use "
            "zoo pretrain, or a script"
        )
    return (
        int(os.environ.get("NODE_RANK", 0)) * devices + int(os.environ.get("LOCAL_RANK", 0))
        if devices * nodes > 1
        else 0
    )


def first() -> bool:
    """Whether this process, after training, is the one that speaks for all."""
    return rank_zero_only.rank == 0


class Processes(DDPStrategy):
    """As Lightning's, but for the first meeting there is more time: some processes import torch for longer than
    others.
    """

    sharded = False  # whether each process has but its share of the weights, so that all are needed to compute

    def setup_distributed(self) -> None:
        wanted, self._timeout = self._timeout, max(self._timeout, MEETING)
        super().setup_distributed()
        self._timeout = wanted
        _set_timeout(wanted)


class Watch(L.Callback):
    """Writes to standard error where every thread of this process is, when a batch has taken longer than a process
    waits for the others.

    It only writes. What ends the run is the process group, whose wait of as many seconds began a little later.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds

    def _again(self, *ignored: Any, **also: Any) -> None:
        with contextlib.suppress(ValueError, OSError, AttributeError):  # no standard error that has a number
            faulthandler.dump_traceback_later(self.seconds, file=sys.__stderr__)

    on_train_batch_start = on_train_batch_end = on_validation_batch_start = on_validation_batch_end = (
        on_validation_end
    ) = _again

    def _no_more(self, *ignored: Any, **also: Any) -> None:
        faulthandler.cancel_dump_traceback_later()

    on_train_end = on_exception = teardown = _no_more


@contextlib.contextmanager
def together(trainer: L.Trainer, timeout: float) -> Iterator[None]:
    """Around all that the processes do together. Afterwards each is on its own, the group is no more, and the
    environment is as it was.

    When it fails, the processes that this one started are ended. Raises ZooError when another process ended or didn't
    answer in time.
    """
    if trainer.world_size == 1:
        yield
        return
    before = {key: os.environ.get(key) for key in SET}
    try:
        yield
    except BaseException as error:
        _end_started(trainer)
        if isinstance(error, RuntimeError) and LOST.search(str(error)):
            print(
                f"process {trainer.global_rank} was here, the last call at the end:",
                *traceback.format_tb(error.__traceback__),
                sep="\n",
                file=sys.stderr,
                flush=True,
            )
            raise ZooError(
                f"process {trainer.global_rank} of {trainer.world_size} lost another one, which ended or didn't "
                f"answer for {timeout:g} "
                f"seconds (trainer.timeout): {' '.join(str(error).split())[:200]}; what the others printed says why, "
                "and --resume goes on "
                "from the last saved state"
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})


def _end_started(trainer: L.Trainer) -> None:
    """A stopped process answers no signal but this one, and would stay for ever. Lightning, which would end this
    process too, forgets them.
    """
    processes = getattr(trainer.strategy.launcher, "procs", [])
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    processes.clear()

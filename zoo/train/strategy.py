"""What the processes of a run share."""

from __future__ import annotations

import datetime

from zoo.machine.ranks import Processes


def strategy(world: int, timeout: float, kind: str) -> Processes | str:
    """Lightning's strategy for `world` processes, which share the work by `kind`, ddp or fsdp: NCCL between GPUs, Gloo
    between CPUs, and `timeout` seconds for whatever one waits for.
    """
    if world == 1:
        return "auto"
    from zoo.train.fsdp import Sharded

    return {"ddp": Processes, "fsdp": Sharded}[kind](timeout=datetime.timedelta(seconds=timeout))

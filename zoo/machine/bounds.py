"""A network that a stranger describes is built within bounds: a recipe or a card of a few bytes doesn't decide how much
memory and time it takes.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.errors import ZooError, because

OPERATIONS = 60_000  # of torch; timm's longest, maxvit_xlarge, takes 27,000, and a teacher of it 6,000
CONTAINER = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)  # of Linux's control groups, version 2 and 1
BESIDE = 1 << 30  # bytes that the task of a card may take beside its files: queues, teachers, tables


class Bounded(TorchDispatchMode):
    """Inside, torch makes new tensors of at most `memory` bytes altogether, in at most OPERATIONS operations. What
    would go beyond raises ZooError before it is allocated; so does what torch refuses, such as a width below 0. The
    numbers drawn are the same as outside.

    Args:
        who: begins the sentence: "the network of ...".
        memory: in bytes; by default this machine's, or the container's share of it.
        mend: ends the sentence.
    """

    def __init__(self, who: str, memory: int | None = None, mend: str = "give smaller numbers under backbone and task"):
        super().__init__()
        self.who, self.mend, self.memory = who, mend, _memory() if memory is None else memory
        self.bytes = self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.operations += 1
        if any(argument.name == "device" for argument in func._schema.arguments):  # it makes a tensor from nothing
            self.bytes += _size(func, args, kwargs)
        if self.operations > OPERATIONS or self.bytes > self.memory:
            raise ZooError(
                f"{self.who} takes more than {self.memory / 1e9:.1f} GB, or {OPERATIONS:,} operations of torch, to "
                f"build; {self.mend}"
            )
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            raise ZooError(
                f"{self.who} can't be built: {because(error)}; see to the numbers of its backbone and task"
            ) from error


def _size(func, args: tuple, kwargs: dict) -> int:
    """Bytes of the tensor that would be made, found without making it; 0 where torch can't say, or refuses the
    sizes.
    """
    try:
        return func(*args, **kwargs | {"device": torch.device("meta")}).nbytes
    except (RuntimeError, AttributeError):
        return 0


def _memory() -> int:
    """Bytes of this machine's memory, or of the container's share of it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max" for no limit
            found.append(int(Path(file).read_text()))
    return min(found)

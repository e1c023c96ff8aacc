"""Random draws that are a function of counters, never of how a run got where it is."""

from __future__ import annotations

import enum
import hashlib

import torch


class Draw(enum.IntEnum):
    """What is drawn: the counter that keeps two kinds of draws apart. Every kind has its number here alone."""

    TRAINING = 0  # views of a training batch, and dropout
    VALIDATION = 1
    WEIGHTS = 2  # initial weights of a run
    PICTURES = 3  # what a task draws for its figures
    RANDOM_WEIGHTS = 5  # networks without pretraining, for comparison
    FEATURES = 6  # what a task draws for its features
    IMPORTED = 7  # weights that an incomplete import leaves as they were drawn


def mix(*counters: int) -> int:
    """A 63-bit seed from integers, the same on every machine and in every process."""
    plain = tuple(int(counter) for counter in counters)
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=8).digest(), "little") >> 1


class counted:
    """Inside, torch's generators (of the CPU and, for a GPU, of `device`) are seeded by counters. Afterwards they are
    as they were before.
    """

    def __init__(self, device: torch.device, *counters: int):
        self.gpus = [device] if device.type == "cuda" else []
        self.seed = mix(*counters)

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng(self.gpus)
        self.fork.__enter__()
        torch.default_generator.manual_seed(self.seed)
        for gpu in self.gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(self.seed)

    def __exit__(self, *error) -> bool | None:
        return self.fork.__exit__(*error)

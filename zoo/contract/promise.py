"""A promise kept or broken, and what comparing needs."""

from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def promise(kept: bool, sentence: str) -> None:
    if not kept:
        raise AssertionError(sentence)


@contextlib.contextmanager
def as_found() -> Iterator[None]:
    """The generators of Python, NumPy and torch are afterwards as before."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


def equal(one: Any, other: Any) -> bool:
    pairs = list(tensors(one)), list(tensors(other))
    return len(pairs[0]) == len(pairs[1]) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*pairs, strict=True)
    )


def global_state() -> dict[str, Any]:
    return {
        "Python's random numbers": random.getstate(),
        "NumPy's random numbers": pickle.dumps(np.random.get_state()),
        "whether gradients are recorded": torch.is_grad_enabled(),
        "the default type of numbers": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }

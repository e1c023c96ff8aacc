"""How a task is trained: the optimizer, its parameter groups, and the learning rate as a function of progress."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from zoo.errors import ZooError


@dataclass(frozen=True)
class Optim:
    """The optimizer and its schedule: linear warm-up, then a half cosine to zero.

    Args:
        name: adamw, sgd (Nesterov momentum) or lars (timm's, for very large batches).
        lr: peak learning rate; the number that the optimizer uses, rescaled by nothing.
        weight_decay: for matrices and filters; biases, norms and other vectors are never decayed.
        warmup: share of the run, 0 to 1, in which the learning rate rises from 0.
        momentum: beta1 of adamw; momentum of sgd and lars.
        beta2: second-moment decay of adamw.
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    momentum: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ZooError(f"optim.lr is {self.lr}; it has to be above 0")
        if self.weight_decay < 0:
            raise ZooError(f"optim.weight_decay is {self.weight_decay}; it can't be below 0")
        for key in ("warmup", "momentum", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ZooError(f"optim.{key} is {getattr(self, key)}; it has to be at least 0 and below 1")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(module, self.weight_decay)
        if self.name == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, betas=(self.momentum, self.beta2), fused=True)
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)
        from timm.optim import Lars

        return Lars(groups, lr=self.lr, momentum=self.momentum)

    def scale(self, progress: float) -> float:
        """Share of the peak learning rate at a progress from 0 to 1."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to exactly `end` at 1, along half a cosine: the momentum of teachers, for one."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress)) if progress < 1 else end


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups of trainable parameters: matrices and filters decay; vectors (biases, norms) and scalars don't."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim > 1]
    rest = [p for p in trainable if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]

"""How long and in what arithmetic a task is trained: the recipe's `trainer` group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zoo.errors import ZooError


@dataclass(frozen=True)
class Training:
    """How long and in what arithmetic a task is trained. Whichever of max_steps and max_epochs is reached first ends
    the run.

    Args:
        max_steps: optimizer steps; -1 for no limit.
        max_epochs: passes over the training split; -1 for no limit.
        precision: "32", or "bf16" for autocast to bfloat16 with float32 weights and losses; a recipe's bf16 becomes 32
            on a device without instructions for it, one that is given beside the recipe doesn't.
        channels_last: memory layout of convolutions; faster with bf16 on most machines.
        accumulate: batches whose gradients are added up before a step.
        clip: largest norm of the gradient; 0 for no limit.
        accelerator: where to train; auto takes a GPU when there is one.
        devices: processes on each machine that train together, each with a GPU of its own or a share of the CPU; a step
            sees data.batch_size pictures of each.
        nodes: machines that do.
        strategy: what the processes share. With ddp each has the whole network. With fsdp each has its share of every
            weight, gradient and optimizer state, and a transformer's blocks are put together one by one when they
            compute: for a ViT or Eva that is too large for one device. In bf16, copies of half the size stay whole
                between forward and backward.
        timeout: seconds that a process waits for the others before it ends the run.
        validate_every: epochs between two looks at the validation split (loss, online kNN, spread, effective rank); 0
            for none but for a look for collapse at the end. By default five looks at 2,000 of its pictures, evenly over
            the run and at its end.
        save_every: steps between two saves of the resumable state.
    """

    max_steps: int = -1
    max_epochs: int = -1
    precision: Literal["32", "bf16"] = "32"
    channels_last: bool = False
    accumulate: int = 1
    clip: float = 0.0
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    timeout: float = 300.0
    validate_every: int | None = None
    save_every: int = 500

    def __post_init__(self) -> None:
        for key in ("max_steps", "max_epochs"):
            if getattr(self, key) < 1 and getattr(self, key) != -1:
                raise ZooError(f"trainer.{key} is {getattr(self, key)}; give at least 1, or -1 for no limit")
        if self.max_steps == self.max_epochs == -1:
            raise ZooError("the recipe doesn't say how long to train; set trainer.max_steps or trainer.max_epochs")
        for key, least in (
            ("accumulate", 1),
            ("clip", 0),
            ("validate_every", 0),
            ("save_every", 1),
            ("devices", 1),
            ("nodes", 1),
            ("timeout", 1),
        ):
            if getattr(self, key) is not None and getattr(self, key) < least:
                raise ZooError(f"trainer.{key} is {getattr(self, key)}; the least is {least}")

    @property
    def processes(self) -> int:
        return self.devices * self.nodes

"""Training in shares (FSDP): no process holds the whole network, but its share of every weight, gradient and optimizer
state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.heads import TransformerDecoder
from zoo.machine.ranks import Processes
from zoo.tasks.base import PretextTask

BUCKET = 250 * 2**20  # bytes of buffers that are broadcast at once, as DDP's


def check(task: PretextTask, processes: int, channels_last: bool) -> None:
    """Raises ZooError for a run that can't be shared out, block by block of a transformer."""
    if processes == 1:
        raise ZooError(
            "trainer.strategy is fsdp, by which processes share a network, and there is one; set trainer.devices to "
            "how many GPUs there are, "
            "or trainer.strategy to ddp"
        )
    if channels_last:
        raise ZooError(
            "trainer.strategy is fsdp, and torch can't share out weights that are channels_last; set "
            "trainer.channels_last to false"
        )
    for backbone in task.tower.values():
        if not backbone.blocks:
            raise ZooError(
                f"trainer.strategy is fsdp, which shares out the blocks of a transformer, and {backbone.name} "
                f"({type(backbone.model).__name__}) has none; use a ViT or Eva of timm, such as vit_tiny_patch16_224, "
                "or set trainer.strategy to ddp"
            )
    if alone := [name for name, p in task.named_parameters() if p.ndim == 0]:
        raise ZooError(
            f"trainer.strategy is fsdp, and {alone[0]} of the task {task.name} is a scalar, which torch can't share "
            "out; give it the shape "
            "(1,), or set trainer.strategy to ddp"
        )


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a backbone or decoder, each of which is called as a module."""
    return list(module.blocks) if isinstance(module, (Backbone, TransformerDecoder)) else []


def shard(task: PretextTask, device: torch.device) -> None:
    """Leave this process its share, on `device`, of every parameter: rows r of W about equal parts, if it is the r-th
    of W processes.

    A block of the backbone, of a teacher or of a decoder is whole while it computes, and what is in none of them, such
    as heads, during the step. Buffers are whole everywhere. Parameters are DTensors then, so that norms and
    `Teacher.follow` need to know of nothing.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = DeviceMesh.from_group(dist.group.WORLD, device.type)
    for module in list(task.modules()):
        for block in _blocks(module):
            fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)
    for method in ("views", "features", "represent"):  # a task may compute with its weights in these too
        register_fsdp_forward_method(task, method)


def whole(trainer: L.Trainer, task: PretextTask) -> PretextTask:
    """`task`, built anew, with the trained weights of all processes; on the first, as the others write nothing."""
    weights = trainer.strategy.lightning_module_state_dict()
    if trainer.is_global_zero:
        task.load_state_dict(weights)
    return task


class Sharded(Processes):
    """Lightning's strategy for `trainer.strategy: fsdp`, by torch's fully_shard.

    States are saved whole, as those of other runs are: they are put together on the first process, one tensor after the
    other. Every process builds the network, and reads a state, as a whole before it keeps its share.
    """

    sharded = True

    def model_to_device(self) -> None:
        shard(self.lightning_module, self.root_device)

    def configure_ddp(self) -> None:  # which would wrap the network for DDP
        return

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        buffers = list(self.lightning_module.buffers())
        with torch.no_grad():  # the first process's hold, as with DDP
            dist._broadcast_coalesced(dist.group.WORLD, buffers, BUCKET, 0)
        return super().training_step(*args, **kwargs)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self._whole(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return self._whole(super().optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """The model's state was loaded before it was shared out, this one comes after."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            mine = {
                number: {key: _share(value, parameters[number]) for key, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": mine})

    def teardown(self) -> None:
        """Shares stay on their devices, between which the state that is saved after the last step goes; Lightning would
        take them to the CPU.
        """
        task, optimizers = self._lightning_module, self.optimizers
        self._lightning_module, self.optimizers = None, []
        super().teardown()
        self._lightning_module, self.optimizers = task, optimizers

    @torch.no_grad()
    def _whole(self, state: Any) -> Any:
        """`state` with whole tensors, on the CPU, in place of shares; on processes but the first, which write nothing,
        with None.
        """
        if isinstance(state, dict):
            return {key: self._whole(value) for key, value in state.items()}
        if isinstance(state, list):
            return [self._whole(value) for value in state]
        if not _is_shared(state):
            return state
        whole = state.detach().full_tensor()
        return whole.cpu().clone() if self.is_global_zero else None  # a clone, for torch gives padding along


def _is_shared(value: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def _share(value: Any, parameter: Tensor) -> Any:
    """This process's part of an optimizer's whole tensor that belongs to a parameter; what has another shape, such as a
    count, is everybody's.
    """
    from torch.distributed.tensor import distribute_tensor

    if not isinstance(value, Tensor) or value.shape != parameter.shape or not _is_shared(parameter):
        return value
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )

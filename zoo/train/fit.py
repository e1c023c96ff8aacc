"""Whether the parts of a recipe fit together, asked before anything is downloaded or trained."""

from __future__ import annotations

import contextlib

import torch

from zoo.backbones import create_backbone
from zoo.backbones.create import patch_side
from zoo.data.datasets import DataInfo, data_info
from zoo.data.info import FOLDER, SHARDS, check_size
from zoo.draws import Draw, counted
from zoo.errors import ZooError
from zoo.machine import ranks
from zoo.machine.bounds import Bounded
from zoo.optim import Optim
from zoo.registry import find_task
from zoo.tasks.base import PretextTask
from zoo.tasks.create import create_task


def _sized(resolved: dict, info: DataInfo) -> dict:
    """The recipe with the size nearest to the set's own that its task and backbone can be built for, where it says none
    and the set's is but a habit.
    """
    if resolved["data"]["size"] is not None or not info.name.startswith((FOLDER, SHARDS)):
        return resolved
    side = patch_side(size=info.size, **resolved["backbone"])
    if not side or info.size % side == 0:
        return resolved
    sizes = sorted(range(side, 3 * info.size // 2, side), key=lambda size: abs(size - info.size)) or [side]
    for size in sizes:
        with contextlib.suppress(ZooError):  # such as of a tokenizer whose words aren't as large as the patches
            build(resolved, size)
            break
    else:
        size = sizes[0]  # it isn't the size, and what it is will be said
    return resolved | {"data": resolved["data"] | {"size": size}}


def check_fit(resolved: dict) -> DataInfo:
    """Whether the data hold what the task needs, asked before anything is downloaded. Raises ZooError."""
    check_size(resolved["data"]["size"])
    info, task = data_info(resolved["data"]["name"]), find_task(resolved["task"]["name"])
    missing = [field for field in task.needs if field not in info.fields]
    if missing:
        raise ZooError(
            f"the task {task.name} needs {' and '.join(missing)}, which {info.name} doesn't have; its fields are "
            f"{', '.join(info.fields)}"
        )
    if task.needs_colour and info.channels == 1:
        raise ZooError(
            f"the task {task.name} needs colour pictures, and those of {info.name} are grey; try emoji, cifar10 or "
            "folder:PATH"
        )
    return info


def build(resolved: dict, size: int) -> PretextTask:
    """The task of a resolved recipe with its initial weights, a function of the seed alone."""
    keywords = dict(resolved["backbone"])
    arguments = dict(resolved["task"])
    with counted(torch.device("cpu"), resolved["seed"], Draw.WEIGHTS), Bounded("the network of this recipe"):
        backbone = create_backbone(keywords.pop("name"), size=size, **keywords)
        task = create_task(arguments.pop("name"), backbone, **arguments)
    task.seed, task.optim = resolved["seed"], Optim(**resolved["optim"])
    return task


def _smaller(resolved: dict) -> dict:
    small = {key: dict(value) if isinstance(value, dict) else value for key, value in resolved.items()}
    small["data"]["batch_size"] = 8
    _, _, devices, nodes = ranks.started() or (None, 0, 1, 1)
    small["trainer"].update(max_steps=2, max_epochs=-1, accelerator="cpu", devices=devices, nodes=nodes)
    if devices * nodes == 1:
        small["trainer"]["strategy"] = "ddp"  # one process has nothing to share
    return small

"""Whether the parts of a recipe fit together, asked before anything is downloaded or trained."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch

from zoo.backbones import Backbone, create_backbone
from zoo.backbones.create import patch_side
from zoo.backbones.names import built_in, reads
from zoo.data.datasets import DataInfo, data_info
from zoo.data.info import FOLDER, SHARDS, Settings
from zoo.draws import Draw, counted
from zoo.errors import ZooError
from zoo.fields import given_to_backbone
from zoo.machine import ranks
from zoo.machine.bounds import Bounded
from zoo.optim import Optim
from zoo.registry import find_task
from zoo.tasks.base import PretextTask
from zoo.tasks.create import create_task


def networks(resolved: dict, task: type[PretextTask]) -> dict[str, dict[str, Any]]:
    """Keywords of each tower's network, its name among them, by tower."""
    given = resolved["backbone"]
    return {"backbone": given} if list(task.towers) == ["backbone"] else {tower: given[tower] for tower in task.towers}


def with_size(resolved: dict, info: DataInfo) -> dict:
    """The recipe with an image size that its networks and task can be built for.

    A size that the recipe gives stays, and so does that of a named set. The size of a folder or of shards is only a
    habit: the nearest size that the patches of every network divide takes its place.
    """
    if resolved["data"]["size"] is not None or not info.name.startswith((FOLDER, SHARDS)) or not info.channels:
        return resolved
    task = find_task(resolved["task"]["name"])
    seeing = [keywords for tower, keywords in networks(resolved, task).items() if task.towers[tower] == "image"]
    side = math.lcm(*(patch_side(size=info.size, **keywords) or 1 for keywords in seeing))
    if info.size % side == 0:
        return resolved
    sizes = sorted(range(side, 3 * info.size // 2, side), key=lambda size: abs(size - info.size)) or [side]
    for size in sizes:
        with contextlib.suppress(ZooError):  # the words of a frozen tokenizer, for one, have a size of their own
            build(resolved, asked_of(resolved, info, size))
            break
    else:
        size = sizes[0]  # every size is refused, and the refusal of this size says why
    return resolved | {"data": resolved["data"] | {"size": size}}


def asked_of(resolved: dict, info: DataInfo, size: int | None = None) -> DataInfo:
    """What the data of a recipe will be: the set's entry with the size, length, rate and seconds that the recipe asks
    for.
    """
    data = resolved["data"] if size is None else resolved["data"] | {"size": size}
    return Settings.of(data).applied(info)


def check_fit(resolved: dict) -> DataInfo:
    """Whether the data hold what the task needs, asked before anything is downloaded. Raises ZooError."""
    info, task = data_info(resolved["data"]["name"], Settings.of(resolved["data"])), find_task(resolved["task"]["name"])
    missing = [field for field in task.needs if field not in info.fields]
    if missing:
        raise ZooError(
            f"the task {task.name} needs {' and '.join(missing)}, which {info.name} doesn't have"
            f"{info.why_not(missing)}; its fields are {', '.join(info.fields)}"
        )
    for tower in task.towers:
        _check_tower(tower, info, task)
    if task.needs_colour and info.channels == 1:
        raise ZooError(
            f"the task {task.name} needs colour images, and those of {info.name} are grey; try emoji, cifar10 or "
            "folder:PATH"
        )
    return info


def _check_tower(tower: str, info: DataInfo, task: type[PretextTask]) -> None:
    """Raises ZooError unless the data have a field of the kind that a tower reads."""
    kind, key = task.towers[tower], "backbone" if tower == "backbone" else f"backbone.{tower}"
    if not info.fields_of(kind):
        kinds = ", ".join(f"{name} ({value.kind})" for name, value in info.kinds.items())
        raise ZooError(
            f"{key} of the task {task.name} reads {kind}, which {info.name} doesn't have{info.why_not([kind])}; its "
            f"fields: {kinds}"
        )


def build(resolved: dict, info: DataInfo) -> PretextTask:
    """The task of a resolved recipe on data such as `info` says. Its initial weights are a function of the seed.

    Raises ZooError for networks and tasks that can't be made.
    """
    arguments = dict(resolved["task"])
    task = find_task(arguments["name"])
    with counted(torch.device("cpu"), resolved["seed"], Draw.WEIGHTS), Bounded("the network of this recipe"):
        towers = {
            tower: _network(tower, task.towers[tower], keywords, info)
            for tower, keywords in networks(resolved, task).items()
        }
        made = create_task(arguments.pop("name"), towers=towers, **arguments)
    made.seed, made.optim = resolved["seed"], Optim(**resolved["optim"])
    return made


def _network(tower: str, kind: str, keywords: dict[str, Any], info: DataInfo) -> Backbone:
    """A tower's network for the field of the data that it reads."""
    where = "backbone" if tower == "backbone" else f"backbone.{tower}"
    if keywords["name"] in built_in() and reads(keywords["name"]) != kind:
        known = [name for name in built_in() if reads(name) == kind]
        raise ZooError(
            f"{where} is {keywords['name']}, which reads {reads(keywords['name'])}, and the task reads {kind}; take "
            + ("a model of timm, such as resnet18" if kind == "image" else f"one of {', '.join(known)}")
        )
    given = given_to_backbone(info.kinds[info.fields_of(kind)[0]])
    for word in given:
        if word in keywords:
            raise ZooError(f"{where}.{word} can't be set in a recipe: data.{word} is for data and backbone alike")
    return create_backbone(**keywords, **given)


def for_smoke(resolved: dict) -> dict:
    """The recipe in two tiny steps on the CPU."""
    small = {key: dict(value) if isinstance(value, dict) else value for key, value in resolved.items()}
    small["data"]["batch_size"] = 8
    _, _, devices, nodes = ranks.started() or (None, 0, 1, 1)
    small["trainer"].update(max_steps=2, max_epochs=-1, accelerator="cpu", devices=devices, nodes=nodes)
    if devices * nodes == 1:
        small["trainer"]["strategy"] = "ddp"  # one process has nothing to share
    return small

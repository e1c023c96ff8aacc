"""Whether the parts of a recipe fit together, asked before anything is downloaded or trained."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch

from zoo import recipe as recipes
from zoo.backbones import Backbone, create_backbone
from zoo.backbones.create import patch_side
from zoo.backbones.names import built_in, reads
from zoo.checkpoint.source import Source, full_name, open_source
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

DROPPING = ("drop_rate", "drop_path_rate")  # keywords that change training, and neither weights nor features


def networks(resolved: dict, task: type[PretextTask]) -> dict[str, dict[str, Any]]:
    """Keywords of each tower's network, its name among them, by tower."""
    return {
        tower: {key: value for key, value in given.items() if key != recipes.WEIGHTS}
        for tower, given in _groups(resolved, task).items()
    }


def _groups(resolved: dict, task: type[PretextTask]) -> dict[str, dict[str, Any]]:
    given = resolved["backbone"]
    return {"backbone": given} if list(task.towers) == ["backbone"] else {tower: given[tower] for tower in task.towers}


def weights_of(resolved: dict, task: type[PretextTask]) -> dict[str, str]:
    """The names of the weights that networks start from, by tower."""
    groups = _groups(resolved, task).items()
    return {tower: given[recipes.WEIGHTS] for tower, given in groups if recipes.WEIGHTS in given}


def key_of(tower: str) -> str:
    """The group of a recipe that holds a tower's keywords."""
    return "backbone" if tower == "backbone" else f"backbone.{tower}"


def with_full_names(resolved: dict, task: type[PretextTask]) -> dict:
    """The recipe with folders of weights as absolute paths."""
    names = weights_of(resolved, task).items()
    return recipes.resolve(resolved, {f"{key_of(tower)}.{recipes.WEIGHTS}": full_name(name) for tower, name in names})


def open_sources(resolved: dict, task: type[PretextTask]) -> dict[str, Source]:
    """The weights that a recipe's networks start from, by tower. Raises ZooError for weights that can't be had."""
    sources = {}
    for tower, name in weights_of(resolved, task).items():
        try:
            sources[tower] = open_source(name, tower)
        except ZooError as error:
            raise ZooError(f"{key_of(tower)}.{recipes.WEIGHTS} is {name!r}, which can't be used: {error}") from error
    return sources


def with_sources(resolved: dict, task: type[PretextTask], sources: dict[str, Source], info: DataInfo) -> dict:
    """The recipe with the networks of its sources written out, and for images of no fixed size the size of theirs.

    Raises ZooError for a keyword that contradicts a source, and for data that its network can't read.
    """
    changes: dict[str, Any] = {}
    for tower, source in sources.items():
        key, network = key_of(tower), source.backbone
        if network.reads != task.towers[tower]:
            raise ZooError(
                f"{key}.{recipes.WEIGHTS} {source.name} reads {network.reads}, and {key} of the task {task.name} "
                f"reads {task.towers[tower]}; give weights of such a network"
            )
        if network.reads == "text":  # its tokenizer is no part of a run's state, so that a resumed run would lack it
            raise ZooError(
                f"{key}.{recipes.WEIGHTS} {source.name} reads text, and a run starts only from weights of networks "
                f"without a tokenizer; leave {key}.{recipes.WEIGHTS} out"
            )
        _check_keywords(key, _groups(resolved, task)[tower], source)
        changes |= {f"{key}.{word}": value for word, value in source.keywords.items()}
        changes |= {
            f"{key}.{word}": value for word, value in _groups(resolved, task)[tower].items() if word.endswith(DROPPING)
        }
        if network.reads != "image":
            continue
        if info.channels not in (0, None, 1, network.channels):
            raise ZooError(
                f"{key}.{recipes.WEIGHTS} {source.name} is a network of {network.channels} channel(s), and the images "
                f"of {info.name} have {info.channels}; give weights of {info.channels} channels, or other data"
            )
        if resolved["data"]["size"] is None and info.name.startswith((FOLDER, SHARDS)):
            changes["data.size"] = list(network.size) if isinstance(network.size, tuple) else network.size
    return recipes.resolve(resolved, changes)


def _check_keywords(key: str, given: dict[str, Any], source: Source) -> None:
    """Raises ZooError for a keyword of a recipe that contradicts the network of a source."""
    own = {"in_chans": 3} | source.keywords if source.backbone.reads == "image" else source.keywords
    for word, value in given.items():
        if word == recipes.WEIGHTS or word.endswith(DROPPING) or (word in own and own[word] == value):
            continue
        has = f"has {own[word]!r}" if word in own else "doesn't set it"
        raise ZooError(
            f"{key}.{word} is {value!r}, and {key}.{recipes.WEIGHTS} {source.name} {has}; leave {key}.{word} out"
            + (f", or set it to {own[word]!r}" if word in own else "")
        )


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


def build(resolved: dict, info: DataInfo, sources: dict[str, Source] | None = None) -> PretextTask:
    """The task of a resolved recipe on data such as `info` says. Its initial weights are a function of the seed and of
    `sources`, the weights that towers start from.

    Raises ZooError for networks and tasks that can't be made.
    """
    arguments = dict(resolved["task"])
    task = find_task(arguments["name"])
    with counted(torch.device("cpu"), resolved["seed"], Draw.WEIGHTS), Bounded("the network of this recipe"):
        towers = {
            tower: _network(tower, task.towers[tower], keywords, info)
            for tower, keywords in networks(resolved, task).items()
        }
        for tower, source in (sources or {}).items():
            source.fill(towers[tower], f"{key_of(tower)}.{recipes.WEIGHTS}")
        made = create_task(arguments.pop("name"), towers=towers, **arguments)
    for tower, source in (sources or {}).items():  # a constructor may have drawn some of the weights again
        source.fill(made.tower[tower], f"{key_of(tower)}.{recipes.WEIGHTS}")
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

"""A model as timm itself publishes it, config.json and model.safetensors: in a folder, or in a repository of Hugging
Face.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from zoo.backbones import Backbone, create_backbone
from zoo.card import FILE, LARGEST
from zoo.checkpoint.files import CONFIG, MODEL
from zoo.checkpoint.tensors import read_tensors
from zoo.errors import ZooError
from zoo.hub.carriers import HuggingFace
from zoo.hub.hub import local_checkpoint
from zoo.machine.bounds import BESIDE, Bounded
from zoo.paths import beside, expanded, explain, home, offline, swap, write_bytes
from zoo.strict import Missing, read_json

MOST = 32 << 30  # bytes of a model.safetensors that is taken from elsewhere


def find_timm(name: str) -> Path | None:
    """The folder of a model of timm's own, which a folder is or a repository hf://organisation/name@revision holds;
    None where it is something else.

    What comes from a repository is kept below `ZOO_HOME`/timm; for the same weights in a year, give a commit as
    revision. Raises ZooError where it can't be had.
    """
    if not name.startswith("hf://"):
        folder = expanded(name)
        return folder if (folder / CONFIG).is_file() and local_checkpoint(folder) is None else None
    carrier, folder = HuggingFace(name), home() / "timm" / re.sub(r"[^A-Za-z0-9._-]+", "--", name.removeprefix("hf://"))
    if all((folder / file).is_file() for file in (CONFIG, MODEL)):
        return folder
    if offline():  # a checkpoint of ours may be in the cache, and else that is said
        return None
    try:
        carrier.read(FILE, LARGEST)
        return None  # it has a card, so it is one of ours
    except Missing:
        pass
    try:
        with beside(folder) as fresh:
            write_bytes(fresh / CONFIG, carrier.read(CONFIG, LARGEST))
            write_bytes(fresh / MODEL, carrier.read(MODEL, MOST))
            fresh.chmod(0o755)
            swap(fresh, folder)
    except OSError as error:
        raise explain(error, folder, 0) from error
    return folder


def load_timm(folder: Path) -> Backbone:
    """A backbone from config.json and model.safetensors as timm writes them; without its classifier. Raises
    ZooError.
    """
    where, weights = folder / CONFIG, folder / MODEL
    given = read_tensors(weights)
    bounds = Bounded(
        f"the network that {where} describes",
        BESIDE + 4 * weights.stat().st_size,
        f"{MODEL} beside it is far smaller, so they don't belong together",
    )
    try:
        config = read_json(where.read_bytes(), str(where))
        preset, keywords = config["pretrained_cfg"], dict(config.get("model_args") or {})
        for word in ("num_classes", "pretrained_cfg", "pretrained_cfg_overlay"):  # of the classifier, which is left out
            keywords.pop(word, None)
        size, mean, std = keywords.pop("img_size", preset["input_size"][1]), preset["mean"], preset["std"]
        with (
            torch.random.fork_rng(devices=[]),
            bounds,
        ):  # its first weights are replaced, and what the views draw doesn't depend on them
            backbone = create_backbone(config["architecture"], size=size, **keywords)
        (
            backbone.shift.copy_(torch.tensor(mean).view_as(backbone.shift)),
            backbone.scale.copy_(torch.tensor(std).view_as(backbone.scale)),
        )
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, OSError) as error:
        raise ZooError(f"{where} is not timm's description of a model: {type(error).__name__}: {error}") from error
    wanted = backbone.model.state_dict()
    odd = [key for key in wanted if key not in given or given[key].shape != wanted[key].shape]
    if odd:
        raise ZooError(
            f"{weights} lacks {len(odd)} of the {len(wanted)} tensors of the network in {CONFIG}, {odd[0]} for one"
        )
    backbone.model.load_state_dict({key: given[key] for key in wanted})
    return backbone

"""Checkpoints: a folder of safetensors and JSON that timm loads without us, and a card that says where it came from.

    model.safetensors  config.json        the backbone, as timm.create_model("local-dir:PATH", pretrained=True) wants it
    heads.safetensors                     the task's heads and decoders
    zoo.json  README.md  *.png            the card, the card for people, what the task predicts

Data only. Reading compares size and sha256 before anything is parsed, builds networks by their registered names, and is
strict: there is no other file to fall back to, and no part of a network that is left as it happens to be.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from zoo import card as cards
from zoo.backbones import Backbone
from zoo.card import read_card
from zoo.checkpoint.files import CONFIG, plain_model
from zoo.checkpoint.towers import read_tower
from zoo.checkpoint.transform import Transform
from zoo.errors import ZooError, nearest
from zoo.hub.hub import find
from zoo.machine.bounds import BESIDE, Bounded
from zoo.strict import read_json


def load_backbone(folder: str | Path, tower: str | None = None) -> Backbone:
    """A backbone with its weights, in eval mode: the first, or the one of that tower.

    Raises ZooError for a damaged or foreign checkpoint, and for a tower that it doesn't have.
    """
    folder = Path(folder)
    return read_backbone(folder, read_card(folder), tower)


def read_backbone(folder: Path, card: dict, tower: str | None = None) -> Backbone:
    """`load_backbone` of a checkpoint whose card has been read."""
    towers = cards.towers_of(card)
    name = next(name for name, entry in towers.items() if not entry["folder"]) if tower is None else tower
    if name not in towers:
        raise ZooError(f"{folder} has no tower {name!r}{nearest(name, towers)}")
    entry = towers[name]
    spec = entry["backbone"] | cards.given_by_data(card, entry["reads"])
    place = f"{entry['folder']}/" if entry["folder"] else ""
    where = str(folder / entry["folder"])
    return read_tower(entry["reads"], spec, lambda file: cards.read_file(folder, card, f"{place}{file}"), where)


def load(name: str | Path, hub: str | Path | None = None) -> tuple[nn.Module, Transform]:
    """(model, transform) of a checkpoint: a plain timm module in eval mode, and what turns a PIL image into its input.

    `name` is a checkpoint's or a run's folder, or a name in the hub, which is pulled. Raises ZooError for an unknown
    name, a damaged checkpoint, and a checkpoint whose first network doesn't read images.
    """
    backbone = load_backbone(find(name, hub))
    if backbone.reads != "image":
        raise ZooError(
            f"the network of {name} reads {backbone.reads}, and zoo.load gives a timm model with a transform of "
            "images; use zoo.checkpoint.read.load_backbone"
        )
    transform = Transform(backbone.size, backbone.channels, backbone.mean, backbone.std)
    if backbone.origin != "zoo":
        return backbone.model, transform
    model, _ = plain_model(backbone.timm_name, backbone.size, backbone.timm_arguments)
    model.load_state_dict(backbone.model.state_dict(), strict=True)
    return model.eval(), transform


def config_of(folder: Path, card: dict, path: str = CONFIG) -> dict:
    """The config.json of a network that timm opens."""
    config = read_json(cards.read_file(folder, card, path), str(folder / path))
    if not isinstance(config, dict) or not isinstance(config.get("pretrained_cfg"), dict):
        raise ZooError(f"{folder / path} is not a description of a timm model")
    return config


def bounded(folder: Path, card: dict) -> Bounded:
    """No network is built that is far larger than the weights that came with its card."""
    size = sum(entry["size"] for entry in card["files"])
    return Bounded(
        f"the network that {folder / cards.FILE} describes",
        BESIDE + 4 * size,
        f"its files hold {size / 1e6:,.1f} MB, so they belong to another, and nothing was loaded",
    )

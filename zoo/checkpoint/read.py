"""Checkpoints: a folder of safetensors and JSON that timm loads without us, and a card that says where it came from.

    model.safetensors  config.json        the backbone, as timm.create_model("local-dir:PATH", pretrained=True) wants it
    heads.safetensors                     the task's heads and decoders
    zoo.json  README.md  *.png            the card, the card for people, what the task predicts

Data only. Reading compares size and sha256 before anything is parsed, builds networks by their registered names, and is
strict: there is no other file to fall back to, and no part of a network that is left as it happens to be.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from zoo import card as cards
from zoo.backbones import Backbone, create_backbone
from zoo.card import read_card
from zoo.checkpoint.files import CONFIG, CONFIG_KEYS, MODEL, PRETRAINED_KEYS, plain_model, timm_config
from zoo.checkpoint.transform import Transform
from zoo.errors import ZooError
from zoo.machine.bounds import BESIDE, Bounded


def load_backbone(folder: str | Path) -> Backbone:
    """The backbone with its weights, taking images in [0, 1], in eval mode. Raises ZooError for a damaged or foreign
    checkpoint.
    """
    folder = Path(folder)
    card = read_card(folder)
    backbone = built(folder, card)
    fill(backbone.model, backbone.model.state_dict(), folder, card, MODEL)
    return backbone.eval()


def load(name: str | Path, hub: str | Path | None = None) -> tuple[nn.Module, Transform]:
    """(model, transform) of a checkpoint: a plain timm module in eval mode, and what turns a PIL image into its input.

    `name` is a checkpoint's or a run's folder, or a name in the hub, which is pulled. Raises ZooError for an unknown
    name and a damaged checkpoint.
    """
    from zoo.hub.hub import find

    backbone = load_backbone(find(name, hub))
    model, _ = plain_model(backbone.name, backbone.size, backbone.arguments)
    model.load_state_dict(backbone.model.state_dict(), strict=True)
    return model.eval(), Transform(backbone.size, backbone.channels, backbone.mean, backbone.std)


def built(folder: Path, card: dict) -> Backbone:
    """The card's backbone with fresh weights. What timm would build from config.json has to be the same network."""
    keywords = dict(card["backbone"])
    with torch.random.fork_rng(devices=[]), bounded(folder, card):
        backbone = create_backbone(keywords.pop("name"), size=card["data"]["size"], **keywords)
    where = folder / CONFIG
    config, wanted = config_of(folder, card), timm_config(backbone, card["license"])
    if odd := sorted((config.keys() - CONFIG_KEYS) | (config["pretrained_cfg"].keys() - PRETRAINED_KEYS)):
        raise ZooError(f"{where} has {odd[0]}, which doesn't belong into a checkpoint")
    for key in ("architecture", "num_classes", "model_args"):
        if config.get(key) != json.loads(json.dumps(wanted[key])):
            raise ZooError(
                f"{where} and {cards.FILE} describe different networks: {key} is {str(config.get(key))[:80]} and "
                f"{str(wanted[key])[:80]}"
            )
    return backbone


def config_of(folder: Path, card: dict) -> dict:
    """What timm reads of a checkpoint."""
    config = cards.read_json(cards.read_file(folder, card, CONFIG), str(folder / CONFIG))
    if not isinstance(config, dict) or not isinstance(config.get("pretrained_cfg"), dict):
        raise ZooError(f"{folder / CONFIG} is not a description of a timm model")
    return config


def bounded(folder: Path, card: dict) -> Bounded:
    """No network is built that is far larger than the weights that came with its card."""
    size = sum(entry["size"] for entry in card["files"])
    return Bounded(
        f"the network that {folder / cards.FILE} describes",
        BESIDE + 4 * size,
        f"its files hold {size / 1e6:,.1f} MB, so they belong to another, and nothing was loaded",
    )


def fill(module: nn.Module, wanted: dict[str, Tensor], folder: Path, card: dict, path: str) -> None:
    """Every tensor of `wanted`, a part of the module's state, from a file; or a ZooError that says what share of them
    matched.
    """
    data = cards.read_file(folder, card, path)
    try:
        given = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ZooError(f"{folder / path} is not a whole safetensors file: {error}") from error
    fitting = [
        key
        for key in wanted
        if key in given and (given[key].shape, given[key].dtype) == (wanted[key].shape, wanted[key].dtype)
    ]
    if not len(fitting) == len(wanted) == len(given):
        share = (
            100
            * sum(wanted[key].numel() for key in fitting)
            / max(1, sum(tensor.numel() for tensor in wanted.values()))
        )
        odd = sorted((wanted.keys() ^ given.keys()) or (wanted.keys() - set(fitting)))
        raise ZooError(
            f"{folder / path} fits only {share:.1f} % of the parameters of the network that its card describes (first "
            "difference: "
            f"{odd[0][:100]}); it belongs to another network or version, and nothing was loaded"
        )
    module.load_state_dict(given, strict=False)  # strict by the comparison above; the module may have other parts

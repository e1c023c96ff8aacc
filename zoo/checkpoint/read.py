"""Checkpoints: a folder of safetensors and JSON that timm loads without us, and a card that says where it came from.

    model.safetensors  config.json        the backbone, as timm.create_model("local-dir:PATH", pretrained=True) wants it
    heads.safetensors                     the task's heads and decoders
    zoo.json  README.md  *.png            the card, the card for people, what the task predicts

Data only. Reading compares size and sha256 before anything is parsed, builds networks by their registered names, and is
strict: there is no other file to fall back to, and no part of a network that is left as it happens to be.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from zoo import card as cards
from zoo.backbones import Backbone
from zoo.card import read_card
from zoo.checkpoint.files import CONFIG, fill_exactly, plain_model
from zoo.checkpoint.towers import read_tower
from zoo.checkpoint.transform import Transform
from zoo.errors import ZooError
from zoo.machine.bounds import BESIDE, Bounded


def load_backbone(folder: str | Path) -> Backbone:
    """The backbone with its weights, taking images in [0, 1], in eval mode. Raises ZooError for a damaged or foreign
    checkpoint.
    """
    folder = Path(folder)
    card = read_card(folder)
    return read_backbone(folder, card)


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


def read_backbone(folder: Path, card: dict) -> Backbone:
    """The backbone of a card that was read from `folder`, with its weights, in eval mode. Raises ZooError."""
    spec = card["backbone"] | {"size": card["data"]["size"]}
    return read_tower("image", spec, lambda file: cards.read_file(folder, card, file), str(folder))


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
    fill_exactly(module, wanted, cards.read_file(folder, card, path), str(folder / path))

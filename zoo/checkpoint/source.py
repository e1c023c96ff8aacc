"""Where a network starts from: a checkpoint of the zoo or a model of timm, by one name.

The name is a checkpoint's folder or a run's, a name in the hub, a folder that timm wrote, or hf://organisation/name of
either kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo import card as cards
from zoo.backbones import Backbone, create_backbone
from zoo.card import read_card
from zoo.checkpoint.files import CONFIG, MODEL
from zoo.checkpoint.read import read_backbone
from zoo.checkpoint.timm_folder import find_timm, load_timm
from zoo.errors import ZooError
from zoo.hub.hub import find
from zoo.paths import expanded
from zoo.strict import read_json


@dataclass(frozen=True)
class Source:
    """Weights to start from.

    `name` finds the same weights again. `sha256` is that of their file. `license` is an SPDX expression, or None where
    none is known. `backbone` is the network with the weights, in eval mode.
    """

    name: str
    sha256: str
    license: str | None
    backbone: Backbone

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords of `create_backbone` that a recipe may hold, the name among them: none that the data give."""
        return {"name": self.backbone.name, **self.backbone.arguments}

    @property
    def parent(self) -> str:
        """The source as a card names it."""
        return cards.parent_text(self.name, self.sha256, self.license)

    def fill(self, backbone: Backbone, key: str) -> None:
        """Copy the weights into a network of the same keywords. `key` names the recipe's weights in errors.

        Raises ZooError, and copies nothing, unless every tensor has its name and shape.
        """
        given, wanted = self.backbone.model.state_dict(), backbone.model.state_dict()
        if odd := sorted(given.keys() ^ wanted.keys()):
            raise ZooError(f"{key} {self.name} belongs to another network: only one of the two has {odd[0]}")
        for name in given:
            if given[name].shape != wanted[name].shape:
                raise ZooError(
                    f"{key} {self.name} doesn't fit: its {name} has the shape {list(given[name].shape)}, and the "
                    f"network needs {list(wanted[name].shape)}{_advice(self.backbone, backbone)}"
                )
        backbone.model.load_state_dict(given)


def _advice(source: Backbone, wanted: Backbone) -> str:
    for word in ("size", "length"):
        was, now = getattr(source, word, None), getattr(wanted, word, None)
        if was != now:
            shown = list(was) if isinstance(was, tuple) else was
            return f"; the weights are for {word} {shown} and not {now}, so set data.{word} to {shown}"
    return "; use the keywords of the source, or leave them out"


def full_name(name: str) -> str:
    """The name of a source, with a folder as an absolute path, so that it is found from everywhere.

    A name of the hub and an hf:// address stay as they are.
    """
    if name.startswith("hf://"):
        return name
    path = expanded(name)
    return str(path.resolve()) if path.exists() else name


def open_source(name: str, tower: str | None = None) -> Source:
    """The weights that `name` stands for: the checkpoint's first network, or the network of `tower` where it has one.

    Raises ZooError for an unknown name, a damaged or foreign checkpoint, and a timm model that the zoo would read with
    another normalisation than its own.
    """
    folder = find_timm(name)
    if folder is not None:
        return _timm_source(folder, full_name(name))
    folder = find(name)
    card = read_card(folder)
    towers = cards.towers_of(card)
    chosen = tower if tower in towers else next(key for key, entry in towers.items() if not entry["folder"])
    place = towers[chosen]["folder"]
    path = f"{place}/{MODEL}" if place else MODEL
    digest = next((entry["sha256"] for entry in card["files"] if entry["path"] == path), "")
    return Source(full_name(name), digest, card["license"], read_backbone(folder, card, chosen))


def _timm_source(folder: Path, name: str) -> Source:
    loaded = load_timm(folder)
    preset = read_json((folder / CONFIG).read_bytes(), str(folder / CONFIG))["pretrained_cfg"]
    tag, given = preset.get("tag"), (loaded.shift.flatten().tolist(), loaded.scale.flatten().tolist())
    for architecture in [loaded.name, *([f"{loaded.name}.{tag}"] if isinstance(tag, str) and tag else [])]:
        try:
            with torch.random.fork_rng(devices=[]):
                backbone = create_backbone(architecture, size=loaded.size, **loaded.arguments)
        except ZooError:  # a tag that timm doesn't know
            continue
        own = (backbone.shift.flatten().tolist(), backbone.scale.flatten().tolist())
        if torch.allclose(torch.tensor(own), torch.tensor(given)):
            backbone.model.load_state_dict(loaded.model.state_dict())
            license = preset.get("license") if isinstance(preset.get("license"), str) else None
            return Source(name, cards.sha256(folder / MODEL), license, backbone.eval())
    raise ZooError(
        f"{name} normalises images by mean {given[0]} and std {given[1]}, which {loaded.name} doesn't; a checkpoint "
        "trained from it would be read wrongly, so use other weights"
    )

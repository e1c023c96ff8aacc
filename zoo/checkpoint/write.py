"""Checkpoints, written: a folder of safetensors and JSON, whole or not at all."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from zoo import card as cards
from zoo.card import README, read_card
from zoo.checkpoint.files import CONFIG, HEADS, json_bytes, weights
from zoo.checkpoint.read import config_of
from zoo.checkpoint.towers import tower_files
from zoo.errors import ZooError
from zoo.hub import page
from zoo.paths import beside, explain, home, restore, swap, write_bytes, write_text


def export(task: Any, folder: str | Path, card: dict, pictures: dict[str, Tensor] | None = None) -> Path:
    """Write a checkpoint folder: everything into a temporary one beside it, synced, then put in the place of what was
    there in one step.

    `card` is complete but for `files`; its task, backbone and parameters are taken from `task` itself. `pictures` are
    (3, H, W) floats in [0, 1] by name. Raises ZooError when weights aren't finite, the card isn't one, or the disk is
    full, with what was there before untouched.
    """
    folder, backbone = Path(folder), task.backbone
    card = card | {
        "task": {"name": task.name, **task.arguments},
        "backbone": {"name": backbone.name, **backbone.arguments},
        "parameters": sum(p.numel() for p in backbone.model.parameters()),
    }
    if card["data"]["size"] != backbone.size:
        raise ZooError(
            f"the card says pictures of {card['data']['size']} pixels and the backbone was made for {backbone.size}; "
            "they have to be the same, so make the backbone with size=, or correct data.size in the card"
        )
    files = {
        **tower_files(backbone, card["license"]),
        HEADS: weights(task.heads(), HEADS),
    }
    for name, picture in (pictures or {}).items():
        files[f"{re.sub(r'[^a-z0-9._-]+', '-', name.lower()).strip('-._') or 'picture'}.png"] = png(picture)
    try:
        with beside(folder) as fresh:
            for name, data in files.items():
                write_bytes(fresh / name, data)
            write_card(fresh, card | {"files": cards.files(fresh, list(files))})
            fresh.chmod(0o755)
            swap(fresh, folder)
    except OSError as error:
        raise explain(error, folder, sum(map(len, files.values()))) from error
    return folder


def write_card(folder: Path, card: dict) -> None:
    """zoo.json, and the README made from it."""
    text = cards.dump(card)
    write_text(folder / README, page.render(json.loads(text)))
    write_text(folder / cards.FILE, text)


def update_card(folder: str | Path, **changes: Any) -> dict:
    """Change fields of a checkpoint's card (metrics, license, name, ...), and its README with it. The files have to be
    whole.

    Raises ZooError for a damaged checkpoint, a change that makes the card no card, and a copy in the cache.
    """
    folder = Path(folder)
    if (home() / "hub").resolve() in folder.resolve().parents:
        raise ZooError(
            f"{folder} is the cache's copy of a hub's checkpoint and can't be changed; change the hub's, or a copy "
            "elsewhere"
        )
    restore(folder)
    card = read_card(folder)
    if "files" in changes:
        raise ZooError(
            f"the files of {folder} can't be changed by hand: their sizes and hashes are what the card is for"
        )
    card |= changes
    config = None
    if "license" in changes:  # timm shows it too
        config = config_of(folder, card)
        config["pretrained_cfg"]["license"] = changes["license"]
        entry = cards.entry_for(CONFIG, data := json_bytes(config))
        card["files"] = [entry if known["path"] == CONFIG else known for known in card["files"]]
    cards.dump(card)  # a ZooError now, before anything is written
    if config is None:
        write_card(folder, card)
    else:
        _replace_config(folder.resolve(), data, card)
    return read_card(folder)


def _replace_config(folder: Path, config: bytes, card: dict) -> None:
    """config.json and the card that has its sha256, both or neither: in a copy of the folder, of links where there can
    be such.
    """
    try:
        with beside(folder) as fresh:
            shutil.copytree(folder, fresh, symlinks=True, copy_function=_link, dirs_exist_ok=True)
            write_bytes(fresh / CONFIG, config)
            write_card(fresh, card)
            swap(fresh, folder)
    except OSError as error:
        raise explain(error, folder, sum(entry["size"] for entry in card["files"])) from error


def _link(old: str, new: str) -> None:
    try:
        os.link(old, new)
    except OSError:  # not on every file system
        shutil.copy2(old, new)
        with open(new, "rb") as file:
            os.fsync(file.fileno())


def png(picture: Tensor) -> bytes:
    """(3, H, W) in [0, 1] -> PNG, small pictures enlarged without smoothing so that their pixels can be seen."""
    array = (
        (picture.detach().cpu().float().nan_to_num(0.0).clamp(0, 1) * 255)
        .round()
        .to(torch.uint8)
        .permute(1, 2, 0)
        .numpy()
    )
    image = Image.fromarray(array)
    times = max(1, round(900 / max(image.size)))
    out = io.BytesIO()
    image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST).save(out, "PNG", optimize=True)
    return out.getvalue()

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
from zoo.fields import tidy_size
from zoo.hub import page
from zoo.paths import beside, explain, home, restore, swap, write_bytes, write_text

TIMM_READS = ("image", "audio")  # networks of these kinds are timm's, whose config.json names a licence


def export(task: Any, folder: str | Path, card: dict, figures: dict[str, Tensor | str] | None = None) -> Path:
    """Write a checkpoint folder: everything into a temporary one beside it, synced, then put in the place of what was
    there in one step.

    `card` has every field but schema, task, backbone, parameters, towers and files, which are taken from `task` itself;
    `data.kinds` says the kind of each field as plain values (`zoo.fields.plain`). The card is written in the lowest
    schema that can say it. `figures` are (3, H, W) floats in [0, 1], or texts, by name. Raises ZooError when weights
    aren't finite, the card isn't one, or the disk is full; what was there before stays untouched.
    """
    folder = Path(folder)
    towers, files = {}, {HEADS: weights(task.heads(), HEADS)}
    for name, backbone in task.tower.items():
        place = "" if name == task.first_tower else name
        made = tower_files(backbone, card["license"])
        files |= {f"{place}/{file}" if place else file: data for file, data in made.items()}
        towers[name] = {
            "reads": backbone.reads,
            "backbone": {"name": backbone.name, **backbone.arguments},
            "parameters": sum(p.numel() for p in backbone.model.parameters()),
            "folder": place,
        }
    for name, figure in (figures or {}).items():
        stem = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "figure"
        files |= {f"{stem}.txt": figure.encode()} if isinstance(figure, str) else {f"{stem}.png": png(figure)}
    first = task.tower[task.first_tower]
    if first.reads == "image" and tidy_size(card["data"]["size"]) != first.size:
        raise ZooError(
            f"the card says images of {card['data']['size']} pixels and the backbone was made for {first.size}; "
            "they have to be the same, so make the backbone with size=, or correct data.size in the card"
        )
    card = _in_schema(card | {"task": {"name": task.name, **task.arguments}}, towers, task.first_tower)
    try:
        with beside(folder) as fresh:
            for name, data in files.items():
                (fresh / name).parent.mkdir(exist_ok=True)
                write_bytes(fresh / name, data)
            write_card(fresh, card | {"files": cards.files(fresh, list(files))})
            fresh.chmod(0o755)
            swap(fresh, folder)
    except OSError as error:
        raise explain(error, folder, sum(map(len, files.values()))) from error
    return folder


def _in_schema(card: dict, towers: dict[str, dict], first: str) -> dict:
    """The card in schema 1 if it is about square images and one network, else in schema 2."""
    top = {"backbone": towers[first]["backbone"], "parameters": towers[first]["parameters"]}
    data = {key: value for key, value in card["data"].items() if key != "kinds"}
    if list(towers) == ["backbone"] and towers[first]["reads"] == "image" and isinstance(data["size"], int):
        return {key: value for key, value in card.items() if key != "towers"} | {"schema": 1, "data": data} | top
    kinds = {"kinds": card["data"].get("kinds", {})}
    metrics = [{"unit": "%"} | row for row in card["metrics"]]
    return card | {"schema": 2, "towers": towers, "data": data | kinds, "metrics": metrics} | top


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
    configs = _with_license(folder, card, changes["license"]) if "license" in changes else {}
    if configs:
        entries = {path: cards.entry_for(path, data) for path, data in configs.items()}
        card["files"] = [entries.get(known["path"], known) for known in card["files"]]
    cards.dump(card)  # a ZooError now, before anything is written
    if not configs:
        write_card(folder, card)
    else:
        _replace_configs(folder.resolve(), configs, card)
    return read_card(folder)


def _with_license(folder: Path, card: dict, license: str | None) -> dict[str, bytes]:
    """The config.json of each network that timm opens, which shows the licence too."""
    configs = {}
    for tower in cards.towers_of(card).values():
        path = f"{tower['folder']}/{CONFIG}".lstrip("/")
        if tower["reads"] in TIMM_READS:
            config = config_of(folder, card, path)
            config["pretrained_cfg"]["license"] = license
            configs[path] = json_bytes(config)
    return configs


def _replace_configs(folder: Path, configs: dict[str, bytes], card: dict) -> None:
    """Replace config.json and the card that has its sha256, both or neither: in a copy of the folder, made of hard
    links where the file system has them.
    """
    try:
        with beside(folder) as fresh:
            shutil.copytree(folder, fresh, symlinks=True, copy_function=_link, dirs_exist_ok=True)
            for path, config in configs.items():
                (fresh / path).unlink()
                write_bytes(fresh / path, config)
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

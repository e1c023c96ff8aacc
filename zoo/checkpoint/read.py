"""Checkpoints: a folder of safetensors and JSON that timm loads without us, and a card that says where it came from.

    model.safetensors  config.json        the backbone, as timm.create_model("local-dir:PATH", pretrained=True) wants it
    heads.safetensors                     the task's heads and decoders
    zoo.json  README.md  *.png            the card, the card for people, what the task predicts

Data only. Reading compares size and sha256 before anything is parsed, builds networks by their registered names, and is
strict: there is no other file to fall back to, and no part of a network that is left as it happens to be.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from zoo import card as cards
from zoo.backbones import Backbone, create_backbone
from zoo.machine.bounds import BESIDE, Bounded
from zoo.card import README, read_card
from zoo.data.media.decode import squared
from zoo.errors import ZooError
from zoo.paths import beside, explain, home, restore, swap, write_bytes, write_text
from zoo.tasks.base import PretextTask, create_task

MODEL, CONFIG, HEADS = "model.safetensors", "config.json", "heads.safetensors"
# all that timm may be told: its other keys would let a stranger's config.json name files and addresses
CONFIG_KEYS = {"architecture", "num_classes", "num_features", "model_args", "pretrained_cfg"}
PRETRAINED_KEYS = {
    "num_classes",
    "input_size",
    "fixed_input_size",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "mean",
    "std",
    "first_conv",
    "classifier",
    "license",
}


# ---- writing -------------------------------------------------------------------------------------


def export(task: PretextTask, folder: str | Path, card: dict, pictures: dict[str, Tensor] | None = None) -> Path:
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
        MODEL: weights(backbone.model.state_dict(), MODEL),
        HEADS: weights(task.heads(), HEADS),
        CONFIG: _json(timm_config(backbone, card["license"])),
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
    write_text(folder / README, cards.render(json.loads(text)))
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
        config = _config(folder, card)
        config["pretrained_cfg"]["license"] = changes["license"]
        entry = cards.entry_for(CONFIG, data := _json(config))
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


def weights(state: dict[str, Tensor], what: str = "the network") -> bytes:
    """Tensors as safetensors in a fixed order and layout: equal weights give equal bytes. Raises ZooError for NaN and
    infinity.
    """
    for key, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ZooError(
                f"{key} of {what} has values that aren't finite; such weights are of no use to anybody and aren't "
                "written"
            )
    plain = {key: state[key].detach().cpu().contiguous().clone() for key in sorted(state)}
    return safetensors.torch.save(plain, metadata={"format": "pt"})


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def timm_config(backbone: Backbone, license: str | None) -> dict:
    """config.json: what timm needs to build the same network with the same normalisation, and no claim of timm's own
    weights.
    """
    default = backbone.model.pretrained_cfg
    return {
        "architecture": backbone.name,
        "num_classes": 0,
        "num_features": backbone.model.num_features,
        "model_args": _plain_model(backbone.name, backbone.size, backbone.arguments)[1],
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [backbone.channels, backbone.size, backbone.size],
            "fixed_input_size": bool(default.get("fixed_input_size", False)),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "first_conv": default.get("first_conv"),
            "classifier": default.get("classifier"),
            "license": license,
        },
    }


def _plain_model(name: str, size: int, arguments: dict) -> tuple[nn.Module, dict]:
    """timm's own module for a backbone, and the keywords that make it: `img_size` is among them where the model takes
    it.
    """
    import timm

    keywords = {key: value for key, value in arguments.items() if key != "img_size"}
    with torch.random.fork_rng(devices=[]):
        try:
            return timm.create_model(name, num_classes=0, img_size=size, **keywords), {**keywords, "img_size": size}
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, num_classes=0, **keywords), keywords


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


# ---- reading -------------------------------------------------------------------------------------


def load_backbone(folder: str | Path) -> Backbone:
    """The backbone with its weights, taking images in [0, 1], in eval mode. Raises ZooError for a damaged or foreign
    checkpoint.
    """
    folder = Path(folder)
    card = read_card(folder)
    backbone = _build(folder, card)
    _fill(backbone.model, backbone.model.state_dict(), folder, card, MODEL)
    return backbone.eval()


def load_task(folder: str | Path) -> PretextTask:
    """The pretext task with backbone and heads as they were at the end of training, in eval mode. Teachers, queues and
    the like
    are as at the beginning: only the resumable state of a run has them. Raises ZooError for a damaged or foreign
    checkpoint.
    """
    folder = Path(folder)
    card = read_card(folder)
    arguments, backbone = dict(card["task"]), _build(folder, card)
    try:
        with torch.random.fork_rng(devices=[]), _bounded(folder, card):
            task = create_task(arguments.pop("name"), backbone, **arguments)
    except ZooError as error:
        raise ZooError(f"{folder / cards.FILE}: {error}") from error
    _fill(task.backbone.model, task.backbone.model.state_dict(), folder, card, MODEL)
    _fill(task, task.heads(), folder, card, HEADS)
    task.seed = card["seed"]
    return task.eval()


def load(name: str | Path, hub: str | Path | None = None) -> tuple[nn.Module, Transform]:
    """(model, transform) of a checkpoint: a plain timm module in eval mode, and what turns a PIL image into its input.

    `name` is a checkpoint's or a run's folder, or a name in the hub, which is pulled. Raises ZooError for an unknown
    name and a damaged checkpoint.
    """
    from zoo.hub.hub import find

    backbone = load_backbone(find(name, hub))
    model, _ = _plain_model(backbone.name, backbone.size, backbone.arguments)
    model.load_state_dict(backbone.model.state_dict(), strict=True)
    return model.eval(), Transform(backbone.size, backbone.channels, backbone.mean, backbone.std)


def _build(folder: Path, card: dict) -> Backbone:
    """The card's backbone with fresh weights. What timm would build from config.json has to be the same network."""
    keywords = dict(card["backbone"])
    with torch.random.fork_rng(devices=[]), _bounded(folder, card):
        backbone = create_backbone(keywords.pop("name"), size=card["data"]["size"], **keywords)
    where = folder / CONFIG
    config, wanted = _config(folder, card), timm_config(backbone, card["license"])
    if odd := sorted((config.keys() - CONFIG_KEYS) | (config["pretrained_cfg"].keys() - PRETRAINED_KEYS)):
        raise ZooError(f"{where} has {odd[0]}, which doesn't belong into a checkpoint")
    for key in ("architecture", "num_classes", "model_args"):
        if config.get(key) != json.loads(json.dumps(wanted[key])):
            raise ZooError(
                f"{where} and {cards.FILE} describe different networks: {key} is {str(config.get(key))[:80]} and "
                f"{str(wanted[key])[:80]}"
            )
    return backbone


def _config(folder: Path, card: dict) -> dict:
    """What timm reads of a checkpoint."""
    config = cards.read_json(cards.read_file(folder, card, CONFIG), str(folder / CONFIG))
    if not isinstance(config, dict) or not isinstance(config.get("pretrained_cfg"), dict):
        raise ZooError(f"{folder / CONFIG} is not a description of a timm model")
    return config


def _bounded(folder: Path, card: dict) -> Bounded:
    """No network is built that is far larger than the weights that came with its card."""
    size = sum(entry["size"] for entry in card["files"])
    return Bounded(
        f"the network that {folder / cards.FILE} describes",
        BESIDE + 4 * size,
        f"its files hold {size / 1e6:,.1f} MB, so they belong to another, and nothing was loaded",
    )


def _fill(module: nn.Module, wanted: dict[str, Tensor], folder: Path, card: dict, path: str) -> None:
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


class Transform:
    """A PIL image -> (C, H, W) float tensor, read as the pictures of a folder are (upright, on white where transparent,
    16 bits scaled to 8): RGB or grey, the short side to `size` antialiased, centre crop, normalised. Raises ZooError
    for what is no PIL image.
    """

    def __init__(self, size: int, channels: int, mean: tuple[float, ...], std: tuple[float, ...]):
        self.size, self.channels, self.mean, self.std = size, channels, tuple(mean), tuple(std)

    def __call__(self, image: Image.Image) -> Tensor:
        from torchvision.transforms.v2 import functional as TF

        if not isinstance(image, Image.Image):
            raise ZooError(
                f"the transform takes a PIL image, and this is a {type(image).__name__}; make one of it by "
                "PIL.Image.fromarray or PIL.Image.open"
            )
        square = squared(image, self.size)
        return TF.normalize(
            TF.pil_to_tensor(square if self.channels == 3 else square.convert("L")).float() / 255,
            list(self.mean),
            list(self.std),
        )

    def __repr__(self) -> str:
        mode = "RGB" if self.channels == 3 else "grey"
        return (
            f"Transform(upright {mode}, resize {self.size} antialiased, centre crop {self.size}, mean {self.mean}, "
            f"std {self.std})"
        )

"""Checkpoints: a folder of safetensors and JSON that timm loads without us, and a card that says where it came from.

    model.safetensors  config.json        the backbone, as timm.create_model("local-dir:PATH", pretrained=True) wants it
    heads.safetensors                     the task's heads and decoders
    zoo.json  README.md  *.png            the card, the card for people, what the task predicts
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from zoo import card as cards
from zoo.backbones import Backbone, create_backbone
from zoo.errors import ZooError
from zoo.paths import explain, sync_folder, write_bytes, write_text
from zoo.tasks.base import PretextTask, create_task

MODEL, CONFIG, HEADS, README = "model.safetensors", "config.json", "heads.safetensors", "README.md"


# ---- writing -------------------------------------------------------------------------------------------------------------

def export(task: PretextTask, folder: str | Path, card: dict, pictures: dict[str, Tensor] | None = None) -> Path:
    """Write a checkpoint folder: everything into a temporary one beside it, synced, then renamed over what was there.

    `card` is complete but for `files`; `pictures` are (3, H, W) floats in [0, 1] by name. Raises ZooError on a full disk, with
    what was there before untouched.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        write_weights(fresh / MODEL, task.backbone.model.state_dict())
        write_weights(fresh / HEADS, task.heads())
        write_text(fresh / CONFIG, json.dumps(timm_config(task.backbone, card["license"]), indent=1) + "\n")
        for name, picture in (pictures or {}).items():
            write_bytes(fresh / f"{name}.png", png(picture))
        write_card(fresh, card)
        os.chmod(fresh, 0o755)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise explain(error, folder, 0) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def write_card(folder: Path, card: dict) -> None:
    """zoo.json and README.md of a folder whose other files are complete."""
    paths = [path.name for path in folder.iterdir() if path.is_file() and path.name not in (cards.FILE, README)]
    card = card | {"files": cards.files(folder, paths)}
    write_text(folder / README, cards.render(card, [path for path in sorted(paths) if path.endswith(".png")]))
    write_text(folder / cards.FILE, cards.dump(card))


def update_card(folder: str | Path, **changes: Any) -> dict:
    """Change fields of a checkpoint's card (metrics, license, name, ...), and its README with it. The files have to be whole."""
    folder = Path(folder)
    card = read_card(folder) | changes
    cards.check(card, str(folder / cards.FILE))
    if "license" in changes:
        config = json.loads((folder / CONFIG).read_text())
        config["pretrained_cfg"]["license"] = changes["license"]
        write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")
    write_card(folder, card)
    return read_card(folder)


def write_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Tensors in a fixed order and layout, so that equal weights give equal bytes."""
    plain = {key: state[key].detach().cpu().contiguous().clone() for key in sorted(state)}
    write_bytes(path, safetensors.torch.save(plain, metadata={"format": "pt"}))


def timm_config(backbone: Backbone, license: str | None) -> dict:
    """config.json: what timm needs to build the same network with the same normalisation, and no claim of timm's own weights."""
    default = backbone.model.pretrained_cfg
    arguments = dict(backbone.arguments)
    if hasattr(getattr(backbone.model, "patch_embed", None), "img_size") and backbone.model.patch_embed.img_size is not None:
        arguments["img_size"] = backbone.size
    return {"architecture": backbone.name, "num_classes": 0, "num_features": backbone.num_features, "model_args": arguments,
            "pretrained_cfg": {"num_classes": 0, "input_size": [backbone.channels, backbone.size, backbone.size],
                               "fixed_input_size": bool(default.get("fixed_input_size", False)), "interpolation": "bilinear", "crop_pct": 1.0,
                               "crop_mode": "center", "mean": list(backbone.mean), "std": list(backbone.std),
                               "first_conv": default.get("first_conv"), "classifier": default.get("classifier"), "license": license}}


def png(picture: Tensor) -> bytes:
    """(3, H, W) in [0, 1] -> PNG, small pictures enlarged without smoothing so that their pixels can be seen."""
    import io

    array = (picture.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    times = max(1, round(900 / max(image.size)))
    out = io.BytesIO()
    image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST).save(out, "PNG", optimize=True)
    return out.getvalue()


# ---- reading -------------------------------------------------------------------------------------------------------------

def read_card(folder: str | Path, hashed: bool = True) -> dict:
    """The card of a checkpoint folder, after comparing size and (if `hashed`) sha256 of every file it lists.

    Raises ZooError for a folder that is none, a damaged card, and a missing, truncated or altered file.
    """
    folder = Path(folder)
    path = folder / cards.FILE
    if not path.is_file():
        raise ZooError(f"{folder} is not a checkpoint: it has no {cards.FILE}")
    with open(path, "rb") as file:
        card = cards.parse(file.read(cards.LARGEST + 1), str(path))
    for entry in card["files"]:
        check_file(folder, entry, hashed)
    return card


def check_file(folder: Path, entry: dict, hashed: bool = True) -> None:
    """Raises ZooError unless `entry` (path, size, sha256) of a card describes the file that lies in `folder`."""
    path = folder / entry["path"]
    if path.is_symlink() or not path.is_file():
        raise ZooError(f"{path} is missing; the checkpoint is incomplete, so pull it again")
    size = path.stat().st_size
    if size != entry["size"]:
        raise ZooError(f"{path} has {size:,} bytes where its card says {entry['size']:,}; it was truncated or altered, so pull it again")
    if hashed and cards.sha256(path) != entry["sha256"]:
        raise ZooError(f"{path} is not the file that its card describes (another sha256); it was altered, so pull it again")


def load_backbone(folder: str | Path) -> Backbone:
    """The backbone with its weights, taking images in [0, 1]."""
    folder = Path(folder)
    backbone = _build(read_card(folder))
    load_weights(backbone.model, folder / MODEL)
    return backbone


def load_task(folder: str | Path) -> PretextTask:
    """The pretext task with backbone and heads as they were at the end of training, in eval mode."""
    folder = Path(folder)
    card = read_card(folder)
    arguments = dict(card["task"])
    task = create_task(arguments.pop("name"), _build(card), **arguments)
    load_weights(task.backbone.model, folder / MODEL)
    heads = read_weights(folder / HEADS)
    _compare(task.heads(), heads, folder / HEADS)
    task.load_state_dict(heads, strict=False)       # strict by the comparison above; the backbone's keys are elsewhere
    task.seed = card["seed"]
    return task.eval()


def load(name: str | Path, hub: str | None = None) -> tuple[nn.Module, "Transform"]:
    """(model, transform) of a checkpoint: a plain timm module in eval mode, and what turns a PIL image into its input.

    `name` is a checkpoint's folder, or a name in the hub. Raises ZooError for an unknown name and a damaged checkpoint.
    """
    import timm

    from zoo.hub import find

    folder = find(str(name), hub)
    backbone = load_backbone(folder)                # checks everything, then timm builds its own from the same folder
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval(), Transform(backbone.size, backbone.channels, backbone.mean, backbone.std)


def read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ZooError(f"{path} is not a whole safetensors file: {error}") from error


def load_weights(module: nn.Module, path: Path) -> None:
    """All parameters and buffers, or a ZooError that says what share of them matched."""
    state = read_weights(path)
    _compare(module.state_dict(), state, path)
    module.load_state_dict(state, strict=True)


def _compare(wanted: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    fitting = [key for key in wanted if key in given and given[key].shape == wanted[key].shape]
    if len(fitting) == len(wanted) == len(given):
        return
    share = 100 * sum(wanted[key].numel() for key in fitting) / max(1, sum(tensor.numel() for tensor in wanted.values()))
    odd = sorted((wanted.keys() ^ given.keys()) or (wanted.keys() - set(fitting)))
    raise ZooError(f"{path} fits only {share:.1f} % of the parameters of the network that its card describes (first difference: {odd[0]}); "
                   "it belongs to another network or version")


def _build(card: dict) -> Backbone:
    keywords = dict(card["backbone"])
    return create_backbone(keywords.pop("name"), size=card["data"]["size"], **keywords)


class Transform:
    """A PIL image -> (C, H, W) float tensor: RGB (or grey), short side to `size` antialiased, centre crop, normalised."""

    def __init__(self, size: int, channels: int, mean: tuple[float, ...], std: tuple[float, ...]):
        self.size, self.channels, self.mean, self.std = size, channels, tuple(mean), tuple(std)

    def __call__(self, image: Image.Image) -> Tensor:
        from torchvision.transforms.v2 import functional as TF

        x = TF.pil_to_tensor(image.convert("RGB" if self.channels == 3 else "L")).float() / 255
        x = TF.center_crop(TF.resize(x, [self.size], antialias=True), [self.size, self.size])
        return TF.normalize(x, list(self.mean), list(self.std))

    def __repr__(self) -> str:
        mode = "RGB" if self.channels == 3 else "L"
        return f'Transform(convert("{mode}"), resize {self.size} antialiased, centre crop {self.size}, mean {self.mean}, std {self.std})'

"""The files of a checkpoint and what they may hold."""

from __future__ import annotations

import json

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.fields import ImageSize

MODEL, CONFIG, HEADS = "model.safetensors", "config.json", "heads.safetensors"
FACTS = "adapted.json"  # beside the weights of a classifier: what it was made from


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


def timm_config(backbone: Backbone, license: str | None) -> dict:
    """config.json: what timm needs to build the same network with the same normalisation, and no claim of timm's own
    weights.
    """
    default = getattr(backbone.model, "pretrained_cfg", {})
    if backbone.origin == "zoo":
        name = backbone.timm_name
        keywords = plain_model(name, backbone.size, backbone.timm_arguments)[1]
    else:  # another package's network: timm opens it where that package registers it with timm
        name, keywords = backbone.name, backbone.arguments
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": getattr(backbone.model, "num_features", backbone.num_features),
        "model_args": keywords,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [backbone.channels, *backbone.image_size],
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


def plain_model(name: str, size: ImageSize, arguments: dict) -> tuple[nn.Module, dict]:
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


def json_bytes(value: dict) -> bytes:
    """JSON as checkpoints hold it: indented by one, one newline at the end."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def fill_exactly(module: nn.Module, wanted: dict[str, Tensor], data: bytes, where: str) -> None:
    """Load every tensor of `wanted`, a part of the module's state, from the bytes of the safetensors file `where`.

    Raises ZooError, with the share that matched, unless the file holds exactly these names, shapes and types.
    """
    try:
        given = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ZooError(f"{where} is not a whole safetensors file: {error}") from error
    fitting = [
        key
        for key in wanted
        if key in given and (given[key].shape, given[key].dtype) == (wanted[key].shape, wanted[key].dtype)
    ]
    if not len(fitting) == len(wanted) == len(given):
        total = max(1, sum(tensor.numel() for tensor in wanted.values()))
        share = 100 * sum(wanted[key].numel() for key in fitting) / total
        odd = sorted((wanted.keys() ^ given.keys()) or (wanted.keys() - set(fitting)))
        raise ZooError(
            f"{where} fits only {share:.1f} % of the parameters of the network that its card describes (first "
            f"difference: {odd[0][:100]}); it belongs to another network or version, and nothing was loaded"
        )
    module.load_state_dict(given, strict=False)  # strict by the comparison above; the module may have other parts

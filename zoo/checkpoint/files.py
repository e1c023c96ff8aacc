"""The files of a checkpoint and what they may hold."""

from __future__ import annotations

import torch
from torch import nn

from zoo.backbones import Backbone
from zoo.backbones.timm_model import ImageSize

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
    default = backbone.model.pretrained_cfg
    return {
        "architecture": backbone.name,
        "num_classes": 0,
        "num_features": backbone.model.num_features,
        "model_args": plain_model(backbone.name, backbone.size, backbone.arguments)[1],
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

"""A backbone by name."""

from __future__ import annotations

import torch

from zoo.backbones.base import Backbone
from zoo.backbones.image import ImageBackbone
from zoo.backbones.timm_model import checked_size, patch_side_of, timm_model
from zoo.errors import UNFIT, ZooError, because


def create_backbone(name: str, size: int | None = None, **arguments) -> Backbone:
    """A timm model by name, with fresh weights drawn from torch's default generator.

    `size` is the image side in pixels: given to models that have an `img_size`, checked against their patch size, and
    ignored by the others. Every further keyword is timm's own (`output_stride`, `depth`, `embed_dim`, ...).

    Raises ZooError for an unknown model, a keyword the model doesn't take, and a size its patches don't divide.
    """
    arguments = {key: value for key, value in arguments.items() if key != "img_size" or size is None}
    model = timm_model(name, size, arguments)
    return ImageBackbone(model, name, checked_size(name, model, size), arguments)


def patch_side(name: str, size: int, **arguments) -> int | None:
    """Pixels along a side of the model's patches; None of one without, and of one that can't be built, of which
    `create_backbone` says why.
    """
    try:
        with torch.device("meta"):  # for its shape alone
            return patch_side_of(
                timm_model(name, size, {key: value for key, value in arguments.items() if key != "img_size"})
            )
    except ZooError:
        return None


def check_forward(backbone: Backbone) -> None:
    """Lets one black picture through, as in training. Raises ZooError where the keywords make a network that can be
    built and not used.

    Draws from torch's default generator. Running statistics stay as they are.
    """
    training = backbone.training
    for layer in backbone.modules():
        layer.training = not hasattr(layer, "running_mean") and not hasattr(layer, "running_var")
    try:
        with torch.no_grad():
            backbone.pool(torch.zeros(1, backbone.channels, backbone.size, backbone.size))
    except ZooError:
        raise
    except UNFIT as error:
        raise ZooError(
            f"{backbone.name} with {backbone.arguments} can't take pictures of {backbone.size} pixels: {because(error)}"
        ) from error
    finally:
        backbone.train(training)

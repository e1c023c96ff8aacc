"""A backbone by name."""

from __future__ import annotations

import torch

from zoo.backbones.audio import audio_backbone
from zoo.backbones.base import Backbone
from zoo.backbones.image import ImageBackbone
from zoo.backbones.names import find_plugged, reads
from zoo.backbones.plugged import make_plugged
from zoo.backbones.text import text_backbone
from zoo.backbones.timm_model import checked_size, patches_of, timm_model
from zoo.errors import UNFIT, ZooError, because
from zoo.fields import ImageSize, tidy_size


def create_backbone(name: str, size: ImageSize | None = None, **arguments) -> Backbone:
    """A backbone by name, with fresh weights drawn from torch's default generator.

    A name of timm's is a network that reads images. `size` is the side of square images in pixels, or (height, width).
    Models that have an `img_size` are built for it, their patches have to divide it, and other models ignore it. Every
    further keyword is timm's own (`output_stride`, `depth`, `embed_dim`, ...).

    bert, distilbert, roberta, deberta-v2, modernbert and gpt2 read texts: see `zoo.backbones.text.text_backbone`.
    audio reads sounds: see `zoo.backbones.audio.audio_backbone`.

    Names of other packages' backbones (entry points of the group `zoo.backbones`) make those.

    Raises ZooError for an unknown name, a keyword the backbone doesn't take, and a size its patches don't divide.
    """
    if plugin := find_plugged(name):
        return make_plugged(plugin, size if size is None else tidy_size(size), arguments)
    if reads(name) == "text":
        if size is not None:
            raise ZooError(f"{name} reads texts, which have a length in tokens and no size; give length instead")
        return text_backbone(name, **arguments)
    if reads(name) == "audio":
        if size is not None:
            raise ZooError(f"{name} reads sounds, which have a rate and seconds and no size; give those instead")
        return audio_backbone(**arguments)
    arguments = {key: value for key, value in arguments.items() if key != "img_size" or size is None}
    size = None if size is None else tidy_size(size)
    model = timm_model(name, size, arguments)
    return ImageBackbone(model, name, checked_size(name, model, size), arguments)


def redrawn(backbone: Backbone) -> Backbone:
    """The same network with fresh weights from torch's default generator, and the tokenizer of a text backbone."""
    learned = {} if getattr(backbone, "tokenizer", None) is None else {"tokenizer": backbone.tokenizer}
    return create_backbone(**backbone.spec() | learned)


def patch_side(name: str, size: ImageSize, **arguments) -> int | None:
    """Largest side of the model's patches in pixels. None of a model without patches, and of a model that can't be
    built: `create_backbone` says why.
    """
    try:
        with torch.device("meta"):  # for its shape alone
            patches = patches_of(
                timm_model(name, size, {key: value for key, value in arguments.items() if key != "img_size"})
            )
            return None if patches is None else max(patches)
    except ZooError:
        return None


def check_forward(backbone: Backbone) -> None:
    """Let one empty sample through the backbone, as in training. Raises ZooError for a network that can be built and
    not used.

    Draws from torch's default generator. Running statistics stay as they are.
    """
    training = backbone.training
    for layer in backbone.modules():
        layer.training = not hasattr(layer, "running_mean") and not hasattr(layer, "running_var")
    try:
        with torch.no_grad():
            backbone.pool(backbone.prepare(backbone.example(1)))
    except ZooError:
        raise
    except UNFIT as error:
        raise ZooError(
            f"{backbone.name} with {backbone.arguments} can't read {_input_of(backbone)}: {because(error)}"
        ) from error
    finally:
        backbone.train(training)


def _input_of(backbone: Backbone) -> str:
    return f"images of {backbone.size} pixels" if backbone.reads == "image" else f"its field {backbone.field}"

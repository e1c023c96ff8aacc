"""A timm model by name, from keywords that a stranger may have written."""

from __future__ import annotations

from torch import nn

from zoo.backbones.names import list_backbones, timm_models
from zoo.errors import UNFIT, ZooError, because, nearest
from zoo.fields import ImageSize, height_width, tidy_size

# Keywords of timm.create_model that reach for files or change what the model returns: not a backbone's to choose.
REFUSED = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "checkpoint_path",
    "cache_dir",
    "num_classes",
    "features_only",
    "out_indices",
    "scriptable",
    "exportable",
    "no_jit",
)


MOST = 1 << 16  # of what the numbers of a keyword add up to: timm makes lists as long as a network is deep


def timm_model(name: str, size: ImageSize | None, arguments: dict) -> nn.Module:
    """timm's own module without a classifier, with fresh weights. Raises ZooError for what timm can't build."""
    import timm

    if name not in timm_models():
        raise ZooError(f"{name!r} is not a backbone{nearest(name, list_backbones())}")
    for word in REFUSED:
        if word in arguments:
            raise ZooError(f"backbone.{word} can't be set: a pretext task starts from fresh weights and reads features")
    if not arguments.get("global_pool", "avg"):
        raise ZooError(
            f"backbone.global_pool is empty, and a pretext task reads pooled features; leave it out for {name}'s own "
            "pooling, or give avg"
        )
    for word, value in arguments.items():
        if _total(value) > MOST:
            raise ZooError(
                f"backbone.{word} is {str(value)[:80]}; depths, widths and the like of a backbone are at most {MOST:,}"
            )
    size_word = {"img_size": size} if size is not None else {}
    try:
        try:
            return timm.create_model(name, num_classes=0, **size_word, **arguments)
        except TypeError as error:
            if not size_word or "img_size" not in str(error):
                raise
            return timm.create_model(name, num_classes=0, **arguments)
    except ZooError:
        raise
    except UNFIT as error:
        words = str(error).split("'")
        if isinstance(error, TypeError) and "unexpected keyword" in str(error) and len(words) > 1:
            raise ZooError(
                f"backbone.{words[1]} is not a keyword of timm's {name}; see timm's documentation of that model for "
                "what it takes, and take one "
                f"of the recipe's out by --backbone.{words[1]} null"
            ) from error
        raise ZooError(f"timm can't build {name} with {arguments | size_word}: {because(error)}") from error


def _total(value: object) -> int:
    if isinstance(value, (list, tuple)):
        return sum(map(_total, value))
    return abs(value) if isinstance(value, int) else 0


def patches_of(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of the model's patches in pixels; None of a model without patches."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    sides = (patch, patch) if isinstance(patch, int) else patch
    whole = isinstance(sides, (tuple, list)) and len(sides) == 2 and all(isinstance(side, int) for side in sides)
    return tuple(sides) if whole else None


def checked_size(name: str, model: nn.Module, size: ImageSize | None) -> ImageSize:
    """The size that a model was built for. Raises ZooError for a size that its patches don't divide."""
    if size is None:
        size = getattr(getattr(model, "patch_embed", None), "img_size", None) or model.pretrained_cfg["input_size"][1:]
    shape, patch = height_width(size), patches_of(model)
    if patch is not None and any(side % part for side, part in zip(shape, patch, strict=True)):
        fitting = [part for part in range(2, min(shape)) if all(side % part == 0 for side in shape)]
        raise ZooError(
            f"{name} has patches of {_pixels(patch)} pixels, which don't divide images of {_pixels(shape)}; "
            f"set backbone.patch_size to one of {fitting} or data.size to a multiple of {_pixels(patch)}"
        )
    return tidy_size(size)


def _pixels(shape: tuple[int, int]) -> str:
    return str(shape[0]) if shape[0] == shape[1] else f"{shape[0]} x {shape[1]}"

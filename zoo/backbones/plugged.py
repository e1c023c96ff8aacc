"""Backbones of other packages, by the entry-point group `zoo.backbones`.

An entry point names a function `(size=None, **plain) -> Backbone`. `size` is the size of the images. `plain` are the
further keys of a recipe's backbone group, and what the data say: the `length` of texts, the `rate` and `seconds` of
sounds. For images the function returns an `ImageBackbone(model, name, size, plain)` around a network with timm's
attributes.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from zoo import plugins
from zoo.backbones.base import Backbone
from zoo.errors import nearest
from zoo.fields import GIVEN
from zoo.plugins import Plugin

IMAGE_NEEDS = ("size", "channels", "mean", "std")  # attributes of a backbone that reads images


def make_plugged(plugin: Plugin, size: int | tuple[int, int] | None, arguments: dict[str, Any]) -> Backbone:
    """The backbone that a package makes, checked. Raises ZooError, naming the distribution, for whatever its function
    raises, for a keyword that it doesn't take, and for what isn't a backbone.
    """
    function = plugged_function(plugin)
    _check_keywords(plugin, function, arguments)
    said = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "its defaults"
    with plugins.blaming(plugin, f"can't be made with {said}"):
        backbone = function(size=size, **arguments)
    if not isinstance(backbone, Backbone):
        raise plugins.unfit(plugin, f"it made a {type(backbone).__name__} instead of a zoo.backbones.Backbone")
    given = GIVEN.get(getattr(backbone, "reads", ""), ())  # by the data, and so no keywords of a recipe
    backbone.arguments = {key: value for key, value in arguments.items() if key not in given}
    backbone.name, backbone.origin = plugin.name, plugin.origin
    if why := _attributes_fault(backbone, size):
        raise plugins.unfit(plugin, why)
    with plugins.blaming(plugin, "can't be used"):
        found = _pooled(backbone)
    if not isinstance(found, Tensor) or tuple(found.shape) != (2, backbone.num_features):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise plugins.unfit(plugin, f"pool gives {shape} for two samples where (2, {backbone.num_features}) is right")
    return backbone


def plugged_function(plugin: Plugin) -> Any:
    """The function of an entry point, imported and not called. Raises ZooError, naming the distribution."""
    function = plugins.load(plugin)
    if not callable(function):
        raise plugins.unfit(plugin, f"{plugin.target} is a {type(function).__name__} instead of a function")
    return function


def _check_keywords(plugin: Plugin, function: Any, arguments: dict[str, Any]) -> None:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a callable that Python can't look into
        return
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "size" not in parameters and not takes_all:
        raise plugins.unfit(plugin, f"{plugin.target} takes no size; its signature is (size=None, **plain)")
    known = [key for key in parameters if key != "size"]
    for key in arguments:
        if key not in parameters and not takes_all:
            raise plugins.unfit(plugin, f"backbone.{key} is not one of its keywords{nearest(key, known)}")


def _attributes_fault(backbone: Backbone, size: Any) -> str | None:
    if not isinstance(getattr(backbone, "model", None), nn.Module):
        return "its backbone has no model, the network whose weights a checkpoint holds"
    features = getattr(backbone, "num_features", None)
    if type(features) is not int or features < 1:
        return f"num_features of its backbone is {features!r}; it is a whole number of at least 1"
    if not isinstance(getattr(backbone, "reads", None), str):
        return "its backbone doesn't say what it reads, such as image, text or audio"
    if backbone.reads == "image":
        for key in IMAGE_NEEDS:
            if not hasattr(backbone, key):
                return f"its backbone reads images and has no {key}; inherit from zoo.backbones.image.ImageBackbone"
        if size is not None and backbone.size != size:
            return f"it was asked for images of {size} pixels and its backbone is made for {backbone.size}"
    return None


def _pooled(backbone: Backbone) -> Any:
    """The features of two empty samples. Neither the generators nor any state of the backbone changes."""
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return backbone.pool(backbone.prepare(backbone.example(2)))
    finally:
        for module, training in modes.items():
            module.training = training

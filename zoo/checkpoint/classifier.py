"""A backbone with a classifier, as timm keeps it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.checkpoint.files import timm_config
from zoo.errors import ZooError


def with_classifier(backbone: Backbone, weight: Tensor, bias: Tensor) -> nn.Module:
    """timm's model of the backbone with a classifier of these weights (K, D) and bias (K,), in eval mode.

    Raises ZooError when timm's classifier of this model isn't one linear layer on the pooled features.
    """
    import timm

    config = timm_config(backbone, None)
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(backbone.timm_name, num_classes=len(weight), **config["model_args"]).eval()
    last = model.get_classifier()
    if not isinstance(last, nn.Linear) or last.weight.shape != weight.shape or last.bias is None:
        raise ZooError(
            f"timm's classifier of {backbone.timm_name} is {type(last).__name__}, not one linear layer on its "
            f"{weight.shape[1]} pooled "
            "features; use --mode knn, or another backbone"
        )
    missing, unexpected = model.load_state_dict(backbone.model.state_dict(), strict=False)
    names = {id(p): name for name, p in model.named_parameters()}
    if unexpected or set(missing) != {names[id(last.weight)], names[id(last.bias)]}:
        raise ZooError(
            f"timm's {backbone.timm_name} has more than its classifier that the backbone lacks "
            f"({', '.join(missing[:3])}); use --mode knn"
        )
    with torch.no_grad():
        last.weight.copy_(weight)
        last.bias.copy_(bias)
    return model

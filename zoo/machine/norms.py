"""BatchNorm over the global batch of several processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.losses import total


def use_global_batch_norm(module: nn.Module) -> nn.Module:
    """Make every BatchNorm in `module` use the statistics of all ranks while training. Parameters and names are
    unchanged.

    torch's own SyncBatchNorm is for CUDA only; this one runs wherever the process group does. timm's BatchNormAct2d
    included.
    """
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not hasattr(layer, "alone"):
            layer.alone = layer.forward
            layer.forward = _GlobalForward(layer)
    return module


class _GlobalForward:
    def __init__(self, layer: nn.Module):
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        if not self.layer.training:
            return self.layer.alone(x)
        x = global_batch_norm(self.layer, x)
        for after in ("drop", "act"):  # BatchNormAct2d fuses what follows into itself
            x = getattr(self.layer, after)(x) if hasattr(self.layer, after) else x
        return x


def global_batch_norm(layer: nn.Module, x: Tensor) -> Tensor:
    """(B, D, ...) normalised by mean and variance over batch, space and ranks; the layer's running statistics
    follow.
    """
    over, shape = [d for d in range(x.ndim) if d != 1], [1, -1] + [1] * (x.ndim - 2)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = wide.new_tensor([x.numel() / x.shape[1]])
    count = total(count)
    mean = total(wide.sum(over)) / count
    centred = wide - mean.view(shape)  # two passes: E[x^2] - E[x]^2 loses digits
    variance = total((centred * centred).sum(over)) / count
    if layer.track_running_stats:
        with torch.no_grad():
            layer.num_batches_tracked += 1
            momentum = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked)
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
            layer.running_var.lerp_((variance * count / (count - 1)).to(layer.running_var.dtype), momentum)
    out = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        out = out * layer.weight.view(shape) + layer.bias.view(shape)
    return out.to(x.dtype)

"""Losses that two or more tasks share, and the only two functions that know of ranks: `gather` and `total`."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def many() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


def total(x: Tensor) -> Tensor:
    """The sum of `x` over all ranks; its gradient is the sum over ranks of the gradients."""
    return _Total.apply(x) if many() else x


def gather(x: Tensor) -> Tensor:
    """(B, ...) of each of W ranks -> (W B, ...), in the order of the global batch: rank r holds its rows r, r + W, ..."""
    return _Gather.apply(x).transpose(0, 1).reshape(-1, *x.shape[1:]) if many() else x


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy of two views, (B, D) each -> scalar (Chen et al. 2020, eq. 1).

    Row i of `first` and of `second` are one image; the negatives of each are all other rows of both, over all ranks. Each rank
    returns the mean over its own anchors, so that the mean over ranks is the loss of the global batch.
    https://arxiv.org/abs/2002.05709
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = (F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1) for z in (first, second))
        others = torch.cat([gather(first), gather(second)])                         # (2G, D), G the global batch
        similarity = torch.cat([first, second]) @ others.T / temperature            # (2B, 2G)
        size, here = len(others) // 2, torch.arange(len(first), device=first.device)
        if many():
            here = here * dist.get_world_size() + dist.get_rank()
        itself, partner = torch.cat([here, here + size]), torch.cat([here + size, here])
        similarity = similarity.scatter(1, itself[:, None], float("-inf"))
        return F.cross_entropy(similarity, partner)

"""Losses that two or more tasks share, and what they need of ranks: `gather`, `total` and `averaged`."""

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
    """(B, ...) of each of W ranks -> (W B, ...), in the order of the global batch: rank r holds its rows r, r + W,
    ...
    """
    return _Gather.apply(x).transpose(0, 1).reshape(-1, *x.shape[1:]) if many() else x


def averaged(values: dict[str, Tensor | float]) -> dict[str, Tensor | float]:
    """Scalars as their means over all ranks, by one exchange; without gradient. A name has to be there on every
    rank.
    """
    if not many():
        return values
    device = next((value.device for value in values.values() if isinstance(value, Tensor)), None)
    stacked = torch.stack(
        [torch.as_tensor(value, dtype=torch.float64).detach().reshape(()).to(device) for value in values.values()]
    )
    return dict(zip(values, (total(stacked) / dist.get_world_size()).to(torch.float32).unbind(), strict=True))


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy of two views, (B, D) each -> scalar (Chen et al. 2020, eq. 1).

    Row i of `first` and of `second` are one image; the negatives of each are all other rows of both, over all ranks.
    Each rank returns the mean over its own anchors, so that the mean over ranks is the loss of the global batch.
    https://arxiv.org/abs/2002.05709
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = normalized(first), normalized(second)
        others = torch.cat([gather(first), gather(second)])  # (2G, D), G the global batch
        similarity = torch.cat([first, second]) @ others.T / temperature  # (2B, 2G)
        size, here = len(others) // 2, torch.arange(len(first), device=first.device)
        if many():
            here = here * dist.get_world_size() + dist.get_rank()
        itself, partner = torch.cat([here, here + size]), torch.cat([here + size, here])
        similarity = similarity.scatter(1, itself[:, None], float("-inf"))
        return F.cross_entropy(similarity, partner)


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Contrast of each query with its key against negatives: (B, D), (B, D), (Q, D) -> scalar. Rows are normalised
    here.

    https://arxiv.org/abs/1807.03748, with a queue of negatives as in https://arxiv.org/abs/1911.05722
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, negatives = (normalized(z) for z in (query, key, negatives))
        positive = (query * key).sum(1, keepdim=True)
        logits = torch.cat([positive, query @ negatives.T], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Minus the mean cosine of rows, (B, D) each -> scalar from -1, where all agree, to 1. No gradient goes into
    `target`.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        return -(normalized(prediction) * normalized(target.detach())).sum(1).mean()


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy with distributions as targets: (..., K) logits, (..., K) rows that sum to 1 -> (...). No gradient
    goes into `target`.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return -(target.detach() * wide(logits).log_softmax(-1)).sum(-1)


def view_cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Cross entropy of a student's views with those of its teacher, over all pairs of two different views of a picture
    -> scalar.

    Logits (B, S, K) of S student's views, and distributions (B, T, K) of the teacher for the first T of them. The loss
    of DINO (https://arxiv.org/abs/2104.14294, eq. 3), as a mean over pairs and pictures. No gradient goes into
    `target`.
    """
    each = soft_cross_entropy(wide(logits)[:, None] / temperature, target[:, :, None]).mean(0)  # (T, S)
    other = ~torch.eye(*each.shape, dtype=torch.bool, device=each.device)
    return each[other].mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int = 3) -> Tensor:
    """Soft assignments (B, K) of samples to prototypes, close to `scores` / `epsilon` and equal in number for every
    prototype.

    Over the global batch of G rows, each row sums to 1 and, after enough iterations, each column to G / K: the
    Sinkhorn-Knopp algorithm of SwAV (https://arxiv.org/abs/2006.09882, appendix A.1), here in logarithms, which no
    `epsilon` overflows.
    """
    with torch.autocast(scores.device.type, enabled=False):
        log = wide(scores) / epsilon
        for _ in range(iterations):
            log = log - _total_logsumexp(log)  # each prototype is chosen by an equal share
            log = log - log.logsumexp(1, keepdim=True)  # each sample chooses once
        return log.exp()


def _total_logsumexp(x: Tensor) -> Tensor:
    """(B, K) -> (1, K): the logarithm of the sum of exponentials down the rows of all ranks."""
    here = x.logsumexp(0, keepdim=True)
    return gather(here).logsumexp(0, keepdim=True)


def wide(x: Tensor) -> Tensor:
    """At least float32, and float64 where it was: losses are computed in it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def log_likelihood(scores: Tensor, chosen: Tensor, part: int = 32) -> Tensor:
    """Logarithms of the probabilities of the `chosen` classes (B, h, w, k) at each place, from scores (B, C, h, w); at
    least in 32 bits.

    `part` pictures at a time: in 32 bits and with its gradient, the scores of all of them would be more than all the
    rest of a small network.
    """
    parts = zip(scores.split(part), chosen.split(part), strict=True)
    return torch.cat([wide(some).movedim(1, -1).log_softmax(-1).gather(-1, index) for some, index in parts])


def normalized(x: Tensor) -> Tensor:
    """Rows of length 1, at least float32."""
    return F.normalize(wide(x), dim=-1)

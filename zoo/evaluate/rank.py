"""Is a representation healthy: how many directions it uses, and whether it has collapsed."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import ZooError


def check_features(x: Tensor, who: str = "the features") -> Tensor:
    """`x` if it is a finite (N, D) matrix; raises ZooError otherwise."""
    if x.ndim != 2 or 0 in x.shape:
        raise ZooError(
            f"{who} have the shape {tuple(x.shape)}; they have to be a matrix (images, numbers per image), neither of "
            "them 0"
        )
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).any(1).sum())
        raise ZooError(
            f"{who} hold NaN or infinity in {bad:,} of {len(x):,} rows; the network that made them has diverged, "
            "lower optim.lr"
        )
    return x


def effective_rank(x: Tensor) -> float:
    """RankMe of features (N, D): exp of the entropy of the singular values' shares, from 1 (one direction) to min(N,
    D).

    0 for features that are all zero. Garrido, Balestriero, Najman, LeCun 2023, https://arxiv.org/abs/2210.02885
    Raises ZooError for features that aren't a finite matrix.
    Differs: singular values come from the smaller Gram matrix in float64, so those below 1e-8 of the largest are noise.
    """
    x = check_features(x).double()
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    if values.sum() == 0:
        return 0.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def spread(x: Tensor) -> float:
    """How far the directions of features (N, D) differ: 1 when they fill the sphere evenly, 0 when all images get the
    same one.

    It is the standard deviation of the l2-normalised features, averaged over dimensions, times the root of D.
    Chen & He 2021, section 4.1 and figure 2, https://arxiv.org/abs/2011.10566
    Raises ZooError for features that aren't a finite matrix.
    """
    x = torch.nn.functional.normalize(check_features(x).double(), dim=1)
    return float(x.std(0, correction=0).mean() * x.shape[1] ** 0.5)

"""Masks and patches: what is hidden of a picture that is cut into squares, drawn for every sample.

A picture (B, C, H, W) of side s * p has N = s * s patches of p pixels, numbered row by row. A mask is (B, N) bool, True
where a patch is hidden, with equally many hidden in each picture of a batch, so that what is kept stacks. Randomness
comes from torch's default generator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError


def patchify(image: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, patch * patch * C): patches row by row, each its pixels row by row with the channels
    last.
    """
    patches = image.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, rows, p, columns, p)
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """The inverse of `patchify`, for square pictures."""
    side = round(patches.shape[1] ** 0.5)
    image = patches.unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))  # (B, rows, columns, p, p, C)
    return image.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def hidden_count(ratio: float, tokens: int) -> int:
    """How many of `tokens` patches a mask of this ratio hides. Raises ZooError when that is none or all of them."""
    count = tokens - round((1 - ratio) * tokens)
    if not 0 < count < tokens:
        raise ZooError(
            f"task.mask_ratio {ratio} hides {count} of {tokens} patches; some have to be seen and some hidden"
        )
    return count


def random_mask(batch: int, tokens: int, hidden: int, device: torch.device | str = "cpu") -> Tensor:
    """(B, N): `hidden` patches of each picture, uniformly without replacement."""
    return _lowest(torch.rand(batch, tokens, device=device), hidden)


def random_keep(batch: int, tokens: int, keep: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Which patches a masked task shows: `keep` of `tokens`, uniformly without replacement for each image.

    Returns the kept ones (B, keep) int64 in random order, and the mask (B, tokens).
    """
    kept = torch.rand(batch, tokens, device=device).argsort(1)[:, :keep]
    mask = torch.ones(batch, tokens, dtype=torch.bool, device=device).scatter_(1, kept, False)
    return kept, mask


def block_mask(
    batch: int, side: int, hidden: int, device: torch.device | str = "cpu", ratio: tuple[float, float] = (0.3, 1 / 0.3)
) -> Tensor:
    """(B, side * side): in each picture the `hidden` patches nearest to a random point, as a box of random height over
    width in `ratio`.

    Neighbouring patches tell much of each other, so hiding a block asks for more than hiding as many single patches.
    Blocks that reach over the border grow on their other sides. BEiT (https://arxiv.org/abs/2106.08254) draws several
    smaller boxes until enough is hidden.
    """
    low, high = torch.tensor(ratio).log().tolist()
    stretch = torch.empty(batch, 1, device=device).uniform_(low, high).div(2).exp()
    centre = torch.rand(2, batch, 1, device=device) * side
    place = torch.arange(side, device=device) + 0.5
    down = (place - centre[0]).abs() / stretch  # (B, side)
    across = (place - centre[1]).abs() * stretch
    distance = torch.maximum(down[:, :, None], across[:, None, :]).flatten(1)
    return _lowest(distance + 1e-3 * torch.rand_like(distance), hidden)  # ties are broken at random


def kept(mask: Tensor) -> Tensor:
    """(B, N) -> (B, n) int64: the patches that are not hidden, in order."""
    return (~mask).nonzero()[:, 1].view(len(mask), -1)


def hidden_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, P + N, D) and a mask (B, N) -> (B n, D): the tokens of the n hidden patches of each picture, in order; prefix
    tokens are left out.
    """
    return tokens[:, -mask.shape[1] :][mask]


def mask_pixels(mask: Tensor, patch: int) -> Tensor:
    """(B, N) bool -> (B, 1, H, W) bool: the pixels of the hidden patches of square pictures."""
    side = round(mask.shape[1] ** 0.5)
    grid = mask.view(len(mask), 1, side, side).float()
    return F.interpolate(grid, scale_factor=patch, mode="nearest").bool()


def _lowest(score: Tensor, count: int) -> Tensor:
    chosen = score.argsort(1)[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, chosen, True)

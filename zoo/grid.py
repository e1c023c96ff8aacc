"""Grids of pictures as tensors, for tasks that draw what they predict."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(*rows: Tensor, pad: int = 2, background: float = 1.0) -> Tensor:
    """Batches of pictures (n, 1 or 3, H, W), one row each -> one picture (3, H', W') in [0, 1].

    uint8 is read as 0 to 255, floats are clamped to [0, 1]; grey is repeated. Rows may differ in length and in size of
    picture.
    """
    drawn = [_strip(row, pad, background) for row in rows]
    width = max(row.shape[2] for row in drawn)
    blank = [torch.full((3, row.shape[1], width), background) for row in drawn]
    for canvas, row in zip(blank, drawn):
        canvas[:, :, : row.shape[2]] = row
    return torch.nn.functional.pad(torch.cat(blank, 1), (0, 0, 0, pad), value=background)


def is_picture(given: object) -> bool:
    """Whether it is a tensor (3, H, W) of floats, such as `rows_of` makes."""
    return (
        isinstance(given, Tensor)
        and given.ndim == 3
        and len(given) == 3
        and given.numel() > 0
        and given.is_floating_point()
    )


def image_grid(images: Tensor, columns: int = 8, pad: int = 2, background: float = 1.0) -> Tensor:
    """Pictures (n, 1 or 3, H, W) in rows of `columns` -> one picture (3, H', W') in [0, 1]."""
    return rows_of(*images.split(columns), pad=pad, background=background)


def _strip(images: Tensor, pad: int, background: float) -> Tensor:
    images = images.detach().cpu()
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float().clamp(0, 1)
    images = images.expand(-1, 3, -1, -1)
    framed = torch.nn.functional.pad(images, (pad, 0, pad, 0), value=background)  # left and top of each picture
    strip = framed.permute(1, 2, 0, 3).flatten(2)
    return torch.nn.functional.pad(strip, (0, pad), value=background)

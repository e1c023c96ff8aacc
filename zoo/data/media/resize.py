"""Images of a set at another size."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 (n, C, H, W) -> (n, C, size, size): short side to `size`, bilinear, antialiased, centre crop."""
    import torch
    from torch.nn.functional import interpolate

    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    shape = max(size, round(height * scale)), max(size, round(width * scale))
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    out = torch.empty(len(images), images.shape[1], size, size, dtype=torch.uint8)
    for begin in range(0, len(images), 512):  # bounds the float copy
        part = interpolate(
            images[begin : begin + 512].float(), shape, mode="bilinear", antialias=True, align_corners=False
        )
        out[begin : begin + 512] = part[..., top : top + size, left : left + size].round().clamp(0, 255).to(torch.uint8)
    return out

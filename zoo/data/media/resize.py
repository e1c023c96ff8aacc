"""Images of a set at another size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.fields import ImageSize, height_width

if TYPE_CHECKING:
    from torch import Tensor


def resize(images: Tensor, size: ImageSize) -> Tensor:
    """uint8 (n, C, H, W) -> (n, C, *size): resized to cover `size`, bilinear, antialiased; then a centre crop."""
    import torch
    from torch.nn.functional import interpolate

    wanted, (height, width) = height_width(size), images.shape[-2:]
    if (height, width) == wanted:
        return images
    scale = max(wanted[0] / height, wanted[1] / width)
    shape = max(wanted[0], round(height * scale)), max(wanted[1], round(width * scale))
    top, left = (shape[0] - wanted[0]) // 2, (shape[1] - wanted[1]) // 2
    out = torch.empty(len(images), images.shape[1], *wanted, dtype=torch.uint8)
    for begin in range(0, len(images), 512):  # bounds the float copy
        part = interpolate(
            images[begin : begin + 512].float(), shape, mode="bilinear", antialias=True, align_corners=False
        )
        part = part[..., top : top + wanted[0], left : left + wanted[1]]
        out[begin : begin + 512] = part.round().clamp(0, 255).to(torch.uint8)
    return out

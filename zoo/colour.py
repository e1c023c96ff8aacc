"""sRGB and CIELAB, batched and exact (D65, 2 degrees): the colour space in which distances are roughly what people see.

Formulas and constants as in https://www.color.org/chardata/rgb/srgb.xalter and CIE 15.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import ZooError

WHITE = (0.95047, 1.0, 1.08883)
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
EDGE = 6 / 29  # below it, CIELAB is linear
LOOKED_AT = 256  # pictures of a set, to see whether it has colour
GREY = 8  # levels of 255 by which the channels of a grey pixel differ, at most, after lossy compression


def rgb_to_lab(x: Tensor) -> Tensor:
    """sRGB (B, 3, H, W), uint8 or in [0, 1] -> L in 0..100, a and b in about -110..110."""
    x = x.float().div(255) if x.dtype == torch.uint8 else x.float()
    linear = torch.where(x > 0.04045, ((x + 0.055) / 1.055).clamp(min=0).pow(2.4), x / 12.92)
    xyz = _mix(linear, torch.tensor(RGB_TO_XYZ, device=x.device) / torch.tensor(WHITE, device=x.device)[:, None])
    f = torch.where(xyz > EDGE**3, xyz.clamp(min=EDGE**3).pow(1 / 3), xyz / (3 * EDGE**2) + 4 / 29)
    fx, fy, fz = f.unbind(1)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse, clamped to [0, 1] where a colour lies outside what sRGB can show."""
    lightness, a, b = lab.float().unbind(1)
    fy = (lightness + 16) / 116
    f = torch.stack([fy + a / 500, fy, (fy - b / 200).clamp(min=0)], dim=1)
    xyz = torch.where(f > EDGE, f.pow(3), 3 * EDGE**2 * (f - 4 / 29))
    inverse = torch.linalg.inv(torch.tensor(RGB_TO_XYZ, dtype=torch.float64)).float().to(lab.device)
    linear = _mix(xyz, inverse * torch.tensor(WHITE, device=lab.device))
    rgb = torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308).pow(1 / 2.4) - 0.055, 12.92 * linear)
    return rgb.clamp(0, 1)


def colour_bins(step: int) -> Tensor:
    """Centres (Q, 2) of the squares of `step` units of ab that some sRGB colour falls into."""
    level = torch.linspace(0, 1, 52)
    cube = torch.cartesian_prod(level, level, level)
    ab = rgb_to_lab(cube.view(-1, 3, 1, 1))[:, 1:, 0, 0]
    return (ab / step).round().unique(dim=0) * step


def has_colour(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> (B,) bool: whether any pixel is something else than grey."""
    return (images.amax(1) - images.amin(1)).flatten(1).amax(1) > GREY


def require_colour(images: Tensor, rows: Tensor, task: str, data: str) -> None:
    """Raises ZooError, naming the task that needs colour and the data, when all of some `rows` (n,) of uint8 images,
    spread evenly, are grey.

    Images that are decoded when they are indexed do as well; where there is colour, the first few are mostly all that
    is read.
    """
    some = rows[torch.linspace(0, len(rows) - 1, min(LOOKED_AT, len(rows))).long()]
    if not any(has_colour(images[few]).any() for few in some.split(16)):
        raise ZooError(
            f"the task {task} needs colour pictures, and those of {data} are grey, all of {len(some):,} for training "
            "that were looked at; "
            "give it coloured ones, or take a task that does without, such as simclr"
        )


def _mix(x: Tensor, matrix: Tensor) -> Tensor:
    """(B, 3, H, W) times (3, 3) over the channels; spelled out, since matrix products may run in lower precision."""
    red, green, blue = x.unbind(1)
    return torch.stack([row[0] * red + row[1] * green + row[2] * blue for row in matrix], dim=1)

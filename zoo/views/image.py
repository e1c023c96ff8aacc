"""Views: batched augmentation on the training device, random for every sample.

Every function takes images (B, C, H, W), uint8 or float in [0, 1], C 1 or 3, and returns float32 in [0, 1]. Randomness
comes from torch's default generator of the images' device, and the order of a jitter from that of the CPU. Pure
functions with given parameters come first; they equal torchvision's. torchvision's own transforms draw one set of
parameters for a whole batch, which is why these exist. What is given stays as it is, unless `inplace` is, by which
float images are changed themselves and a copy is saved.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.colour import lab_to_rgb, rgb_to_lab
from zoo.ranges import SMALLEST_PART

__all__ = [
    "to_float",
    "crop_resize",
    "resize",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_saturation",
    "adjust_hue",
    "luminance",
    "gaussian_blur",
    "solarize",
    "random_boxes",
    "random_resized_crop",
    "color_jitter",
    "random_grayscale",
    "random_blur",
    "random_solarize",
    "simclr_view",
    "multi_crop",
    "each_view",
    "in_turn",
    "rgb_to_lab",
    "lab_to_rgb",
]

LUMINANCE = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


def to_float(x: Tensor) -> Tensor:
    """uint8 0..255, or float in [0, 1] of any precision -> float32 in [0, 1]."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x.float()


# ---- with given parameters -----------------------------------------------------------------------


def crop_resize(
    x: Tensor,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    out: int | tuple[int, int],
    flip: Tensor | None = None,
) -> Tensor:
    """Cut a box of pixels (B,) out of each image and resize it to `out`, bilinear and antialiased, mirrored where
    `flip` (B,) is true.

    Two batched matrix products with triangle weights; equal to torchvision's `resized_crop(antialias=True)` to 1e-6,
    which grid_sample, having no antialiasing, is not.
    """
    rows, columns = (out, out) if isinstance(out, int) else out
    x = to_float(x)
    if (rows, x.shape[-2]) == (columns, x.shape[-1]):  # both axes at once
        down, across = _triangles(torch.cat([top, left]), torch.cat([height, width]), rows, x.shape[-1]).chunk(2)
    else:
        down = _triangles(top, height, rows, x.shape[-2])  # (B, rows, H)
        across = _triangles(left, width, columns, x.shape[-1])  # (B, columns, W)
    if flip is not None:
        across = torch.where(flip.view(-1, 1, 1), across.flip(1), across)
    return _products(down, x, across)


def _products(down: Tensor, x: Tensor, across: Tensor) -> Tensor:
    """(B, h, H), (B, C, H, W), (B, w, W) -> (B, C, h, w): each image times a matrix for its rows and one for its
    columns.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = (x.flatten(1, 2) @ across.mT).unflatten(1, x.shape[1:3])  # the rows of all channels in one product
        return (down[:, None] @ x).clamp_(0, 1)  # rounding alone leaves [0, 1]


def _triangles(start: Tensor, length: Tensor, out: int, size: int) -> Tensor:
    """(B, out, size): weights that resize pixels start .. start + length of an axis of `size` to `out` pixels."""
    scale = (length / out)[:, None]
    centre = (torch.arange(out, device=start.device) + 0.5)[None] * scale  # (B, out), in pixels of the box
    pixel = torch.arange(size, device=start.device)[None] - start[:, None] + 0.5  # (B, size)
    inside = ((pixel > 0) & (pixel < length[:, None])).float()
    distance = (pixel[:, None] - centre[..., None]).abs_().div_(scale.clamp(min=1)[..., None])  # (B, out, size)
    weight = (1 - distance).clamp_(min=0).mul_(inside[:, None])
    return weight.div_(weight.sum(-1, keepdim=True))


def resize(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Whole images to `size`, bilinear and antialiased. Also for maps that aren't images: values are not clamped."""
    x, size = to_float(x), (size, size) if isinstance(size, int) else tuple(size)
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)


def luminance(x: Tensor) -> Tensor:
    """(B, 1, H, W): the brightness of a pixel as torchvision weighs it; a grey image is its own."""
    x = to_float(x)
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    return (LUMINANCE[0] * red).add_(green, alpha=LUMINANCE[1]).add_(blue, alpha=LUMINANCE[2]).unsqueeze(1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor` (B,): 0 is black, 1 the image."""
    return (to_float(x) * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Away from the image's mean luminance by `factor` (B,): 0 is flat grey, 1 the image."""
    x = to_float(x)
    mean = luminance(x).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean.expand_as(x), x, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Away from each pixel's luminance by `factor` (B,): 0 is grey, 1 the image. A grey image stays as it is."""
    x = to_float(x)
    return x if x.shape[1] == 1 else torch.lerp(luminance(x).expand_as(x), x, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by `turn` (B,) of a full circle, -0.5 to 0.5. A grey image stays as it is."""
    x = to_float(x)
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    most, least = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = most - least
    # the hue in sixths of the circle: with chroma 1, green + blue - red runs from -1 at red to 2 at cyan, on both sides
    # of red
    sixth = (green + blue).sub_(red).sub_(least).div_(chroma.clamp(min=1e-12)).add_(1).copysign_(green - blue)
    sixth += 6 * turn.view(-1, 1, 1)
    sixth.sub_((sixth / 6).floor_(), alpha=6)  # 0 .. 6
    away = torch.stack(
        [3 - (sixth - 3).abs_(), (sixth - 2).abs_(), (sixth - 4).abs_()], dim=1
    )  # from red, green and blue
    return torch.addcmul(most.unsqueeze(1), chroma.unsqueeze(1), away.sub_(1).clamp_(0, 1), value=-1).clamp_(0, 1)


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur with a Gaussian of `sigma` (B,) pixels cut to `kernel` (odd) pixels, the border reflected."""
    x = to_float(x)
    tap = torch.arange(kernel, device=x.device) - kernel // 2
    weight = torch.exp(-0.5 * (tap[None] / sigma[:, None]) ** 2)
    weight = weight / weight.sum(1, keepdim=True)  # (B, kernel)
    down = _band(weight, x.shape[-2])
    return _products(down, x, down if x.shape[-2] == x.shape[-1] else _band(weight, x.shape[-1]))


def _band(weight: Tensor, size: int) -> Tensor:
    """(B, kernel) -> (B, size, size): the convolution along an axis as a matrix, reflecting at both ends."""
    with torch.autocast(weight.device.type, enabled=False):
        return (weight @ _places(weight.shape[1], size, weight.device, weight.dtype)).unflatten(1, (size, size))


@functools.lru_cache(maxsize=8)
def _places(kernel: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(kernel, size * size): one where a tap of the kernel, over a pixel of the axis, finds a pixel."""
    with torch.inference_mode(False):  # it stays for calls that are not
        here = torch.arange(size, device=device)
        there_and_back = max(1, 2 * (size - 1))
        source = (here + torch.arange(kernel, device=device)[:, None] - kernel // 2) % there_and_back  # (kernel, size)
        return F.one_hot(torch.minimum(source, there_and_back - source), size).to(dtype).flatten(1)


def solarize(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert what is at or above the threshold."""
    x = to_float(x)
    return torch.where(x >= threshold, 1 - x, x)


# ---- random for every sample ---------------------------------------------------------------------

PART = 1 << 18  # pixels of the images that a CPU takes on at a time


def _in_parts(view: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """On a CPU, make a view of a few images at a time: what it holds in between stays in the cache. Other devices take
    all at once.
    """

    @functools.wraps(view)
    def view_in_parts(x: Tensor, *args, **kwargs) -> Tensor:
        few = max(1, PART // (x.shape[-2] * x.shape[-1]))
        if x.device.type != "cpu" or len(x) <= few:
            return view(x, *args, **kwargs)
        return torch.cat([view(part, *args, **kwargs) for part in x.split(few)])

    return view_in_parts


def random_boxes(
    batch: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(top, left, height, width), each (B,) float, distributed as torchvision's RandomResizedCrop draws them: ten tries
    at a box of random area and ratio that fits, else the largest central one."""
    area = height * width * torch.empty(batch, 10, device=device).uniform_(*scale)
    shape = torch.empty(batch, 10, device=device).uniform_(math.log(ratio[0]), math.log(ratio[1])).exp()
    w, h = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    w, h, fits = (t.gather(1, first).squeeze(1) for t in (w, h, fits))
    w_whole, h_whole = float(width), float(height)
    if width / height < ratio[0]:
        h_whole = float(round(width / ratio[0]))
    elif width / height > ratio[1]:
        w_whole = float(round(height * ratio[1]))
    w, h = torch.where(fits, w, w_whole), torch.where(fits, h, h_whole)
    top, left = (torch.rand(2, batch, device=device) * torch.stack([height - h + 1, width - w + 1])).floor()
    whole = ~fits
    top = torch.where(whole, float((height - int(h_whole)) // 2), top)
    left = torch.where(whole, float((width - int(w_whole)) // 2), left)
    return top, left, h, w


@_in_parts
def random_resized_crop(
    x: Tensor,
    size: int,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Tensor:
    """A random box of each image, `scale` its share of the area and `ratio` width over height, resized to `size`;
    mirrored with chance `flip`.
    """
    boxes = random_boxes(len(x), x.shape[-2], x.shape[-1], scale, ratio, x.device)
    return crop_resize(x, *boxes, size, flip=_chance(len(x), flip, x.device) if flip > 0 else None)


@_in_parts
def color_jitter(
    x: Tensor, brightness: float, contrast: float, saturation: float, hue: float, p: float = 0.8, inplace: bool = False
) -> Tensor:
    """Brightness, contrast, saturation and hue, each by a random factor per image, for a share `p` of the images.

    Factors are uniform in [1 - v, 1 + v] (not below 0), hue in [-v, v] of the circle, as in torchvision's ColorJitter.
    Differs: the order of the four is drawn once for many images (on a CPU for every 2^18 pixels), where torchvision
    draws it for each.
    """
    order = torch.randperm(4)  # on the CPU: known without waiting for a GPU
    x = to_float(x)

    def jitter(part: Tensor) -> Tensor:
        for which in order.tolist():
            adjust, strength = (
                (adjust_brightness, brightness),
                (adjust_contrast, contrast),
                (adjust_saturation, saturation),
                (adjust_hue, hue),
            )[which]
            if strength > 0:
                low, high = (-strength, strength) if which == 3 else (max(0.0, 1 - strength), 1 + strength)
                part = adjust(part, torch.empty(len(part), device=x.device).uniform_(low, high))
        return part

    return _on_some(x, p, jitter, inplace)


def random_grayscale(x: Tensor, p: float = 0.2, inplace: bool = False) -> Tensor:
    """A share `p` of the images without colour, still of three channels."""
    x = to_float(x)
    return x if x.shape[1] == 1 else _on_some(x, p, lambda part: luminance(part).expand_as(part), inplace)


@_in_parts
def random_blur(
    x: Tensor, sigma: tuple[float, float] = (0.1, 2.0), p: float = 0.5, kernel: int | None = None, inplace: bool = False
) -> Tensor:
    """A share `p` of the images blurred by a `sigma` uniform in the range, in pixels; by default the kernel is a tenth
    of the image, odd and at least 3, as SimCLR has it."""
    x = to_float(x)
    kernel = kernel or max(3, int(0.1 * x.shape[-1]) // 2 * 2 + 1)
    return _on_some(
        x,
        p,
        lambda part: gaussian_blur(part, torch.empty(len(part), device=x.device).uniform_(*sigma), kernel),
        inplace,
    )


def random_solarize(x: Tensor, threshold: float = 0.5, p: float = 0.2, inplace: bool = False) -> Tensor:
    """A share `p` of the images solarised."""
    return _on_some(to_float(x), p, lambda part: solarize(part, threshold), inplace)


@_in_parts
def simclr_view(
    x: Tensor,
    size: int,
    scale: tuple[float, float] = (0.2, 1.0),
    jitter: float = 0.5,
    grayscale: float = 0.2,
    blur: float = 0.5,
    flip: float = 0.5,
) -> Tensor:
    """One view as SimCLR makes it: crop, flip, colour jitter, grey, blur (https://arxiv.org/abs/2002.05709, appendix
    A).

    `jitter` is the paper's strength s: brightness, contrast and saturation 0.8 s and hue 0.2 s, for 80 % of the images.
    """
    x = random_resized_crop(x, size, scale, flip=flip)
    if jitter > 0:
        x = color_jitter(x, 0.8 * jitter, 0.8 * jitter, 0.8 * jitter, min(0.2 * jitter, 0.5), inplace=True)
    if grayscale > 0:
        x = random_grayscale(x, grayscale, inplace=True)
    return random_blur(x, p=blur, inplace=True) if blur > 0 else x


def multi_crop(
    x: Tensor,
    size: int,
    small_size: int,
    count: int,
    smallest_crop: float = 0.25,
    jitter: float = 0.5,
    grayscale: float = 0.2,
    blur: float = 0.5,
    flip: float = 0.5,
) -> tuple[Tensor, ...]:
    """Two views of most of each image, (B, 2, C, size, size), and, if `count` is above 0, so many views of small parts
    of it, (B, count, C, small_size, small_size).

    A large view shows from `smallest_crop` to all of an image's area, a small one from 0.05 to `smallest_crop`. The
    scheme of SwAV and DINO (https://arxiv.org/abs/2006.09882): what is seen in a part has to tell of the whole, and
    small pictures cost little.
    """
    kinds = ((2, size, (smallest_crop, 1.0)), (count, small_size, (SMALLEST_PART, smallest_crop)))
    return tuple(
        torch.stack([simclr_view(x, side, share, jitter, grayscale, blur, flip) for _ in range(number)], 1)
        for number, side, share in kinds
        if number > 0
    )


def each_view(network: Callable[[Tensor], Tensor], *kinds: Tensor) -> Tensor:
    """What a network that takes (B, ...) makes of views, (B, V, ...) of each kind -> (B, all V, ...). The views of a
    kind are one batch to it.
    """
    return torch.cat([network(kind.flatten(0, 1)).unflatten(0, kind.shape[:2]) for kind in kinds], 1)


def in_turn(*kinds: Tensor) -> list[Tensor]:
    """Views, (B, V, ...) of each kind -> one after the other, (B, ...) each."""
    return [view for kind in kinds for view in kind.unbind(1)]


def _chance(batch: int, p: float, device: torch.device) -> Tensor:
    return torch.rand(batch, device=device) < p


def _on_some(x: Tensor, p: float, change: Callable[[Tensor], Tensor], inplace: bool) -> Tensor:
    """Apply `change` to a random share `p` of the batch, and pay for that share only; with `inplace` the other images
    aren't even copied.
    """
    chosen = _chance(len(x), p, x.device).nonzero().squeeze(1)
    if not len(chosen):
        return x
    changed = change(x.index_select(0, chosen))
    return x.index_copy_(0, chosen, changed) if inplace else x.index_copy(0, chosen, changed)

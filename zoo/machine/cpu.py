"""Training on a CPU, quicker: the same sums, in another order, and memory that stays where it is."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.backbones import Backbone

TRIM, MAPPED = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
KEEP = {TRIM: 2**31 - 1, MAPPED: 2**30}
GLIBC = {TRIM: 2**26, MAPPED: 2**25}  # where glibc's own adaptation ends after large blocks were freed
FEW_TOKENS = 100  # the square of which is still little memory


def keep_memory() -> None:
    """From now on, memory that tensors gave back stays with the process for the next ones.

    glibc hands large blocks back at once, and a step that takes them anew waits for the system to map and clear every
    page of them: up to half of the time of a small network. Does nothing where malloc isn't glibc's.
    """
    _set(KEEP)


def give_memory_back() -> None:
    """What is free goes to the system, and so will large blocks from now on."""
    if libc := _set(GLIBC):
        libc.malloc_trim(0)


def _set(thresholds: dict[int, int]) -> ctypes.CDLL | None:
    with contextlib.suppress(OSError, TypeError, AttributeError):  # what a system without glibc says
        libc = ctypes.CDLL(None)
        for key, value in thresholds.items():
            libc.mallopt(key, value)
        return libc
    return None


class TinyMapConv2d(nn.Conv2d):
    """A convolution that, while training, is one matrix product where the map has fewer pixels than the filter has.

    On such a map most of a filter lies on the padding, and torch multiplies by those zeros too: of a 3 x 3 filter on a
    map of 1 pixel only the middle counts. Parameters, their names and the result are nn.Conv2d's, but for the rounding
    of sums in another order.
    """

    def forward(self, x: Tensor) -> Tensor:
        taps = (
            _taps(*x.shape[-2:], self.kernel_size, self.stride, self.padding)
            if self.training and x.ndim == 4 and len(x)
            else None
        )
        if taps is None:
            return super().forward(x)
        rows, columns, index = taps
        pixels = rows * columns
        weight = (
            self.weight.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, torch.tensor(index, device=x.device))
        )  # (out, pixels out * pixels in, in)
        weight = (
            weight.unflatten(1, (pixels, -1)).transpose(0, 1).flatten(2).flatten(0, 1)
        )  # (pixels out * out, pixels in * in)
        plain = (
            self.weight.is_contiguous()
        )  # torch's convolution has its result in the layout of its filters, and DDP minds
        flat = x.flatten(1) if plain and x.shape[2] * x.shape[3] == 1 else x.permute(0, 2, 3, 1).flatten(1)
        out = F.linear(flat, weight).view(len(x), pixels, -1)
        out = (
            out.mT.reshape(len(x), -1).view(len(x), -1, rows, columns)
            if plain
            else out.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
        )
        return out if self.bias is None else out + self.bias.to(out.dtype).view(1, -1, 1, 1)


@functools.lru_cache(maxsize=256)
def _taps(
    height: int, width: int, kernels: tuple[int, int], strides: tuple[int, int], paddings: tuple[int, int]
) -> tuple[int, int, list[int]] | None:
    """Rows and columns of the output, and for each pair of a pixel out and a pixel in the place in the filter by which
    they are multiplied.

    None where some pair isn't joined at all, or the matrix would be larger than it is worth.
    """
    rows, columns = (
        (side + 2 * padding - kernel) // stride + 1
        for side, kernel, stride, padding in zip((height, width), kernels, strides, paddings, strict=True)
    )
    for side, out, kernel, stride, padding in zip(
        (height, width), (rows, columns), kernels, strides, paddings, strict=True
    ):
        if out < 1 or padding - stride * (out - 1) < 0 or side - 1 + padding >= kernel:
            return None
    filter_size, pixels = kernels[0] * kernels[1], height * width
    if pixels >= filter_size or pixels * rows * columns > 2 * filter_size:
        return None
    return (
        rows,
        columns,
        [
            (y - strides[0] * row + paddings[0]) * kernels[1] + x - strides[1] * column + paddings[1]
            for row in range(rows)
            for column in range(columns)
            for y in range(height)
            for x in range(width)
        ],
    )


def _plain(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and set(layer.dilation) == {1}
        and max(layer.kernel_size) > 1
    )


def is_tiny(layer: nn.Conv2d, height: int, width: int) -> bool:
    """Whether `quicken` lets the layer compute a map of so many pixels as a matrix product."""
    return _plain(layer) and _taps(height, width, layer.kernel_size, layer.stride, layer.padding) is not None


def quicken(module: nn.Module, tokens: int | None = None) -> None:
    """Let every plain convolution in `module` be a `TinyMapConv2d`, and timm's attentions, over at most 100 `tokens`,
    be made of matrix products.

    torch's fused attention saves memory that a few tokens don't take, and its gradient in bfloat16 takes a CPU nine
    times as long as in float32: more than all the rest of a small ViT, whose step is then half as long. Copies and
    state dicts stay as they are.
    """
    for layer in module.modules():
        if _plain(layer):
            layer.__class__ = TinyMapConv2d
        if tokens is not None and tokens <= FEW_TOKENS and getattr(layer, "fused_attn", False):
            layer.fused_attn, layer.was_fused = False, True


def restore(module: nn.Module) -> None:
    """The opposite of `quicken`."""
    for layer in module.modules():
        if type(layer) is TinyMapConv2d:
            layer.__class__ = nn.Conv2d
        if layer.__dict__.pop("was_fused", False):
            layer.fused_attn = True


def check_strides(backbone: Backbone) -> None:
    """Refuses a convolution that strides over a map narrower than its stride: what torch (2.14, on CPUs that compute in
    bfloat16) gives as the gradient of its filters is memory that nothing was written to, so that the run is another
    each time, or ends in NaN. Raises ZooError.
    """
    found: list[nn.Conv2d] = []

    def look(layer: nn.Conv2d, given: tuple, out: Any) -> None:
        if (
            min(given[0].shape[-2:]) < max(layer.stride)
            and max(layer.kernel_size) > 1
            and not is_tiny(layer, *given[0].shape[-2:])
        ):
            found.append(layer)

    hooks = [layer.register_forward_hook(look) for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    training = backbone.training
    with torch.no_grad():
        backbone.eval().pool(backbone.prepare(backbone.example(1)))
    backbone.train(training)
    for hook in hooks:
        hook.remove()
    if found:
        raise ZooError(
            f"{backbone.name} strides over a feature map of a single pixel where pictures have {backbone.size}, and "
            "there torch's gradients "
            "in bf16 on a CPU are random numbers; set trainer.precision to 32, or a larger data.size, or "
            "backbone.output_stride to 8"
        )

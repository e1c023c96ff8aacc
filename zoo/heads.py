"""Heads: what stands on a backbone while it learns. Each is a plain module; none knows of a task."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.fields import height_width
from zoo.losses import gather, normalized, total, wide


def projector(inputs: int, hidden: int, outputs: int, layers: int = 2) -> nn.Sequential:
    """Linear, BatchNorm and ReLU `layers` - 1 times, then a linear layer without bias and a BatchNorm without weights:
    (B, inputs) -> (B, outputs). The head of SimCLR v1 and v2, https://arxiv.org/abs/2006.10029
    """
    modules, inputs = _hidden_layers(inputs, hidden, layers - 1)
    return nn.Sequential(*modules, nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, affine=False))


def mlp(inputs: int, hidden: int, outputs: int, layers: int = 2) -> nn.Sequential:
    """As `projector`, but the last linear layer has a bias and nothing behind it: the predictor of BYOL
    (https://arxiv.org/abs/2006.07733).
    """
    modules, inputs = _hidden_layers(inputs, hidden, layers - 1)
    return nn.Sequential(*modules, nn.Linear(inputs, outputs))


def _hidden_layers(inputs: int, hidden: int, count: int) -> tuple[list[nn.Module], int]:
    """Linear, BatchNorm and ReLU, `count` times; and the width behind them."""
    modules: list[nn.Module] = []
    for _ in range(count):
        modules += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        inputs = hidden
    return modules, inputs


class Prototypes(nn.Module):
    """(..., D) -> (..., K): cosines with K learned directions."""

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, dim) / dim**0.5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(
            x.device.type, enabled=False
        ):  # divided by a temperature, what bfloat16 rounds off would count
            return normalized(x) @ normalized(self.weight).T


def prototype_head(inputs: int, hidden: int, bottleneck: int, prototypes: int) -> nn.Sequential:
    """(B, inputs) -> (B, prototypes): a `projector` of three layers to `bottleneck` numbers, and their cosines with
    learned directions.

    The head of DINO, https://arxiv.org/abs/2104.14294, with ReLU for GELU, and with BatchNorm: in the hidden layers,
    which is an option of the authors, and at the bottleneck before the prototypes, where theirs has none.
    """
    return nn.Sequential(projector(inputs, hidden, bottleneck, layers=3), Prototypes(bottleneck, prototypes))


class ConvDecoder(nn.Module):
    """(B, inputs) -> (B, channels, size, size): a linear layer to a small map, then nearest-neighbour doublings with
    convolutions.

    Resizing and convolving leaves no checkerboard (https://distill.pub/2016/deconv-checkerboard/). `depth` doublings
    start from a map of ceil(size / 2^depth) and are cropped to `size`; `width` is the channel count of the last map.
    """

    def __init__(self, inputs: int, channels: int, size: int, width: int = 32, depth: int = 2):
        super().__init__()
        self.size, self.start = size, -(-size // 2**depth)
        widths = [width * 2 ** (depth - i) for i in range(depth + 1)]
        self.stem = nn.Linear(inputs, widths[0] * self.start**2)
        self.blocks = nn.ModuleList()
        for before, after in zip(widths, widths[1:]):
            self.blocks.append(
                nn.Sequential(
                    nn.BatchNorm2d(before),
                    nn.ReLU(inplace=True),
                    nn.Upsample(scale_factor=2),
                    nn.Conv2d(before, after, 3, padding=1),
                )
            )
        self.last = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, channels, 3, padding=1)
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.stem(z).unflatten(1, (-1, self.start, self.start))
        for block in self.blocks:
            x = block(x)
        return self.last(x)[..., : self.size, : self.size]


class TransformerDecoder(nn.Module):
    """A few transformer blocks over tokens with a position each: (B, N, D) -> (B, N, outputs).

    Positions are fixed two-dimensional sines and cosines, as in MAE (https://arxiv.org/abs/2111.06377); `side` squared
    is N.
    """

    def __init__(self, dim: int, side: int, outputs: int, depth: int = 1, heads: int = 4):
        super().__init__()
        from timm.models.vision_transformer import Block

        check_heads("a decoder's dim", dim, "its heads", heads)
        self.register_buffer("position", sincos_2d(dim, side), persistent=False)
        self.blocks = nn.Sequential(*[Block(dim, heads, qkv_bias=True) for _ in range(depth)])
        self.norm, self.last = nn.LayerNorm(dim), nn.Linear(dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.blocks(x + self.position)))


class PatchDecoder(nn.Module):
    """(B, inputs) -> (B, channels, size, size): a linear layer to a token for each patch, a TransformerDecoder, and its
    patches laid out.

    About eight patches to a side, whatever the size; what sticks out on the right and below is cropped.
    """

    def __init__(self, inputs: int, channels: int, size: int, dim: int = 64, depth: int = 1):
        super().__init__()
        self.size, self.patch = size, -(-size // 8)
        self.side = -(-size // self.patch)
        self.stem = nn.Linear(inputs, dim * self.side**2)
        self.decoder = TransformerDecoder(dim, self.side, channels * self.patch**2, depth)

    def forward(self, z: Tensor) -> Tensor:
        patches = self.decoder(self.stem(z).unflatten(1, (self.side**2, -1)))
        patches = patches.unflatten(2, (-1, self.patch, self.patch)).unflatten(
            1, (self.side, self.side)
        )  # (B, row, column, C, p, p)
        image = patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return image[..., : self.size, : self.size]


class LinearDecoder(nn.Module):
    """(B, inputs) -> (B, channels, size, size): one linear layer, the decoder of principal components and of factor
    analysis.
    """

    def __init__(self, inputs: int, channels: int, size: int):
        super().__init__()
        self.shape = (channels, size, size)
        self.linear = nn.Linear(inputs, channels * size**2)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z).unflatten(1, self.shape)


def picture_decoder(kind: str, inputs: int, channels: int, size: int, width: int) -> nn.Module:
    """A decoder from a code to a picture, (B, inputs) -> (B, channels, size, size), unbounded: `conv`, `transformer` or
    `linear`.

    `width` is the channel count of the last map of `conv`; `transformer` is twice as wide, and `width`
    has to be even there; `linear` has no width. Raises ZooError for an odd one.
    """
    if kind == "conv":
        return ConvDecoder(inputs, channels, size, width)
    if kind == "transformer":
        if width % 2:
            raise ZooError(f"task.width is {width}; it has to be even where the decoder is a transformer")
        return PatchDecoder(inputs, channels, size, 2 * width)
    return LinearDecoder(inputs, channels, size)


def map_head(inputs: int, width: int, outputs: int, resolution: int) -> nn.Sequential:
    """(B, inputs, h, w) -> (B, outputs, resolution, resolution): a prediction for every place, by two hidden maps of
    `width` channels.
    """
    return nn.Sequential(
        nn.Conv2d(inputs, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Upsample((resolution, resolution), mode="bilinear"),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, outputs, 1),
    )


def check_heads(name: str, dim: int, name_of_heads: str, heads: int) -> None:
    """Raises ZooError, with these names, unless blocks of width `dim` with positions of `sincos_2d` can have so many
    attention heads.
    """
    if dim % heads or dim % 4:
        raise ZooError(f"{name} is {dim}; it has to be a multiple of 4 and of {name_of_heads}, {heads}")


def sincos_2d(dim: int, side: int) -> Tensor:
    """Fixed positions (1, side * side, dim): a quarter of the width each for sin and cos of row and of column."""
    frequency = 1.0 / 10000 ** (torch.arange(dim // 4) / (dim / 4))
    angle = torch.arange(side)[:, None] * frequency  # (side, dim / 4)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, dim / 2)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, side * side, dim)


# ---- what follows, and what remembers: state of a run that no checkpoint carries (`training_only`)


class Teacher(nn.Module):
    """Copies of a student's modules, called one after the other without gradient, whose weights follow the student's.

    BatchNorm in it is in the mode of the task and keeps running statistics of its own, as in MoCo and BYOL. Nothing is
    dropped in it: with a DropPath alive some of its targets would be zeros.
    """

    def __init__(self, *students: nn.Module):
        super().__init__()
        self.modules_in_turn = nn.ModuleList(copy.deepcopy(student) for student in students).requires_grad_(False)
        self._drop_nothing()

    def train(self, mode: bool = True) -> Teacher:
        """Only what keeps running statistics follows `mode`, and convolutions, which
        zoo.machine.cpu computes more quickly while training.
        """
        super().train(mode)
        self._drop_nothing()
        return self

    def _drop_nothing(self) -> None:
        for layer in self.modules():  # all of them: timm's attention asks its own mode whether to drop
            if not isinstance(layer, nn.Conv2d) and not hasattr(layer, "running_var"):
                layer.training = False

    def __getitem__(self, index: int) -> nn.Module:
        return self.modules_in_turn[index]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules_in_turn:
            x = module(x)
        return x

    @torch.no_grad()
    def follow(self, *students: nn.Module, momentum: float) -> None:
        """weights <- momentum * weights + (1 - momentum) * the student's. To be called in `after_step`, when the
        student has moved.
        """
        for mine, student in zip(self.modules_in_turn, students, strict=True):
            torch._foreach_lerp_(list(mine.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)


def check_temperatures(student: float, teacher: float) -> None:
    """Raises ZooError unless a teacher's choice among prototypes is at least as sharp as its student's."""
    if teacher > student:
        raise ZooError(
            f"task.teacher_temperature is {teacher}; it has to be at most task.student_temperature, which is {student}"
        )


class Queue(nn.Module):
    """The last `size` rows that were pushed, over all ranks, of length 1; random directions before so many were.

    `read` it before `push`, which belongs at the end of `forward` and acts while training only.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("rows", normalized(torch.randn(size, dim)))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def read(self) -> Tensor:
        """(size, D), a copy: a later push leaves it as it is."""
        return self.rows.clone()

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """(B, D) of each rank, the oldest make room; of more than `size` the last are kept."""
        if self.training:
            rows = gather(normalized(rows)).to(self.rows.dtype)[-len(self.rows) :]
            where = (self.place + torch.arange(len(rows), device=rows.device)) % len(self.rows)
            self.rows[where] = rows
            self.place.copy_((self.place + len(rows)) % len(self.rows))


class Centre(nn.Module):
    """The running mean (1, K) of what was seen, over all ranks; `update` belongs at the end of `forward` and acts while
    training only.
    """

    def __init__(self, dim: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(1, dim))

    def sharpened(self, logits: Tensor, temperature: float) -> Tensor:
        """(..., K) -> (..., K): distributions, of the logits less the mean, the sharper the lower the temperature."""
        with torch.autocast(logits.device.type, enabled=False):
            return ((wide(logits) - self.value) / temperature).softmax(-1)

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """(B, K) of each rank."""
        if self.training:
            seen, count = (
                total(rows.to(self.value.dtype).sum(0, keepdim=True)),
                total(self.value.new_tensor(float(len(rows)))),
            )
            self.value.lerp_(seen / count, 1 - self.momentum)


# ---- BatchNorm over the global batch -------------------------------------------------------------


def map_decoder(inputs: int, channels: int, size: int | tuple[int, int], width: int) -> nn.Sequential:
    """(B, inputs, h, w), h <= size -> (B, channels, size, size): a convolution, then three resizings, each with a
    convolution.

    Neighbours are repeated, which leaves no checkerboard; sizes halve from `size` backwards, 7, 14, 28 for pictures of
    28 pixels.
    """
    modules: list[nn.Module] = [nn.Conv2d(inputs, 4 * width, 3, padding=1)]
    before = 4 * width
    for step in (2, 1, 0):
        after, shape = width * 2**step, tuple(math.ceil(side / 2**step) for side in height_width(size))
        modules += [
            nn.BatchNorm2d(before),
            nn.ReLU(inplace=True),
            nn.Upsample(shape),
            nn.Conv2d(before, after, 3, padding=1),
        ]
        before = after
    return nn.Sequential(
        *modules, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, channels, 3, padding=1)
    )

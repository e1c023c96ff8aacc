"""Generated samples in the form of a data set, so that a recipe can be tried where the set isn't at hand."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zoo.data.dataset import Dataset
from zoo.data.info import DataInfo
from zoo.fields import (
    Audio,
    Frames,
    Image,
    ImageSize,
    Kind,
    Label,
    Text,
    Tokens,
    height_width,
    size_name,
    tidy_size,
)

NOUNS = ("blob", "spot", "stain", "dot")
PLACES = ("here", "there", "nearby", "far away", "in the middle", "on the edge")


def generate(info: DataInfo, size: ImageSize | None = None, images: int = 96, seed: int = 0) -> Dataset:
    """Samples with the fields and kinds of `info`: half for training, a quarter each for validation and test.

    Labels are true in every field: the class sets where a blob sits and how wide it is (images and frames), the words
    of a text, and the pitch of a tone.

    Args:
        info: what is known of the set.
        size: side of square images, or (height, width); by default the set's own.
        images: number of samples.
        seed: the samples are a function of all four arguments.
    """
    size = tidy_size(info.size if size is None else size)
    info = replace(info, size=size)
    draw = torch.Generator().manual_seed(seed)
    classes = max(len(info.classes), 2)
    label = torch.arange(images) % classes
    fields = {name: _values(kind, label, classes, draw) for name, kind in sorted(info.kinds.items(), key=_images_first)}
    half, quarter = images // 2, images // 4
    order = torch.arange(images)
    splits = {"train": order[:half], "validation": order[half : half + quarter], "test": order[half + quarter :]}
    counts = {name: len(index) for name, index in splits.items()}
    return Dataset(
        replace(info, splits=counts),
        {name: fields[name] for name in info.fields},
        splits,
        fingerprint=f"generated-{seed}-{images}-{size_name(size)}",
    )


def _images_first(field: tuple[str, Kind]) -> bool:
    return not isinstance(field[1], Image)


def _values(kind: Kind, label: Tensor, classes: int, draw: torch.Generator) -> Tensor | list[str]:
    if isinstance(kind, Image):
        return _blobs(label, classes, kind.channels, (kind.height, kind.width), draw)
    if isinstance(kind, Frames):
        return _films(kind, label, classes, draw)
    if isinstance(kind, Text):
        return _texts(label, draw)
    if isinstance(kind, Tokens):
        return _tokens(kind, label, draw)
    if isinstance(kind, Audio):
        return _tones(kind, label, classes, draw)
    return label.clone() if isinstance(kind, Label) else label % 2


def _blobs(
    label: Tensor, classes: int, channels: int, size: ImageSize, draw: torch.Generator, turn: float = 0.0
) -> Tensor:
    """uint8 (n, C, H, W): one coloured blob each, whose place and width say the class. `turn` moves all, in radians."""
    images, (height, width) = len(label), height_width(size)
    angle = 2 * torch.pi * label / classes + turn
    row, column = (
        0.5 + 0.25 * f(angle)[:, None] + 0.05 * torch.randn(images, 1, generator=draw) for f in (torch.sin, torch.cos)
    )
    down, across = ((torch.arange(side) + 0.5) / side for side in (height, width))
    spread = 0.08 + 0.1 * (label % 3)[:, None, None] / 2
    blob = torch.exp(-((down[None] - row)[:, :, None] ** 2 + (across[None] - column)[:, None] ** 2) / (2 * spread**2))
    colour = torch.rand(images, channels, 1, 1, generator=draw)
    noise = 0.05 * torch.rand(images, channels, height, width, generator=draw)
    return ((0.9 * blob[:, None] * (0.3 + 0.7 * colour) + noise).clamp(0, 1) * 255).to(torch.uint8)


def _films(kind: Frames, label: Tensor, classes: int, draw: torch.Generator) -> Tensor:
    """uint8 (n, F, C, H, W): the blob of a class goes once round in four seconds."""
    state = draw.get_state()
    frames = []
    for frame in range(kind.frames):
        draw.set_state(state)  # the same blob in each frame
        turn = 2 * torch.pi * frame / (4 * kind.rate)
        frames.append(_blobs(label, classes, kind.channels, (kind.height, kind.width), draw, turn))
    return torch.stack(frames, 1)


def _texts(label: Tensor, draw: torch.Generator) -> list[str]:
    """Short sentences that name the class."""
    noun, place = (torch.randint(len(words), (len(label),), generator=draw).tolist() for words in (NOUNS, PLACES))
    return [f"a {NOUNS[n]} of class {int(k)} {PLACES[p]}" for k, n, p in zip(label.tolist(), noun, place, strict=True)]


def _tokens(kind: Tokens, label: Tensor, draw: torch.Generator) -> Tensor:
    """int64 (n, T): a random number of tokens, half of which are the class's own; `pad` fills the rest."""
    others = [token for token in range(min(kind.vocabulary, 1000)) if token != kind.pad] or [kind.pad]
    words = torch.tensor(others)
    shape = (len(label), kind.length)
    drawn = words[torch.randint(len(words), shape, generator=draw)]
    own = words[label % len(words)][:, None].expand(shape)
    mixed = torch.where(torch.rand(shape, generator=draw) < 0.5, own, drawn)
    lengths = torch.randint(max(1, kind.length // 2), kind.length + 1, (len(label), 1), generator=draw)
    return torch.where(torch.arange(kind.length) < lengths, mixed, kind.pad)


def _tones(kind: Audio, label: Tensor, classes: int, draw: torch.Generator) -> Tensor:
    """float32 (n, S): one tone each, whose pitch says the class, in a little noise."""
    low, high = min(110.0, kind.rate / 8), kind.rate / 4
    pitch = low * (high / low) ** (label / classes)
    pitch = pitch * (1 + 0.02 * torch.randn(len(label), generator=draw))
    phase = torch.rand(len(label), 1, generator=draw)
    time = torch.arange(kind.samples) / kind.rate
    tone = 0.5 * torch.sin(2 * torch.pi * (pitch[:, None] * time + phase))
    return (tone + 0.02 * torch.randn(len(label), kind.samples, generator=draw)).clamp(-1, 1)

"""Generated pictures in the form of a named data set, so that a recipe can be tried where the set isn't at hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from zoo.data.dataset import Dataset
from zoo.data.datasets import DataInfo


def generate(info: DataInfo, size: int | None = None, images: int = 96, seed: int = 0) -> Dataset:
    """Coloured blobs with the fields, channels and classes of `info`: half for training, a quarter each for validation
    and test.

    Labels are true: the class sets where the blob sits and how wide it is.
    """
    draw = torch.Generator().manual_seed(seed)
    size, classes = size or info.size, max(len(info.classes), 2)
    label = torch.arange(images) % classes
    angle = 2 * torch.pi * label / classes
    place = (torch.arange(size) + 0.5) / size
    row, column = (
        0.5 + 0.25 * f(angle)[:, None] + 0.05 * torch.randn(images, 1, generator=draw) for f in (torch.sin, torch.cos)
    )
    width = 0.08 + 0.1 * (label % 3)[:, None, None] / 2
    blob = torch.exp(
        -((place[None] - row)[:, :, None] ** 2 + (place[None] - column)[:, None] ** 2) / (2 * width**2)
    )  # (n, H, W)
    colour = torch.rand(images, info.channels, 1, 1, generator=draw)
    noise = 0.05 * torch.rand(images, info.channels, size, size, generator=draw)
    image = ((0.9 * blob[:, None] * (0.3 + 0.7 * colour) + noise).clamp(0, 1) * 255).to(torch.uint8)
    fields: dict = {"image": image}
    for field in info.fields:
        if field == "text":
            fields[field] = [f"a blob of class {int(k)}" for k in label]
        elif field != "image":
            fields[field] = label.clone() if field == "label" else label % 2
    half, quarter = images // 2, images // 4
    order = torch.arange(images)
    splits = {"train": order[:half], "validation": order[half : half + quarter], "test": order[half + quarter :]}
    counts = {name: len(index) for name, index in splits.items()}
    return Dataset(
        replace(info, size=size, splits=counts), fields, splits, fingerprint=f"generated-{seed}-{images}-{size}"
    )

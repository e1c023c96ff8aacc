"""Checkpoints and labelled pictures for tests that measure or adapt something: really trained, or only exported."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from card_example import a_card
from PIL import Image

import zoo
from zoo.checkpoint.write import export
from zoo.data.generated import generate
from zoo.data.named.catalogue import ENTRIES

RECIPE = {
    "data": {"name": "digits", "batch_size": 128},
    "backbone": {"name": "test_resnet"},
    "task": {
        "name": "simclr",
        "hidden": 64,
        "outputs": 32,
        "flip": 0.0,
        "smallest_crop": 0.5,
        "jitter": 0.3,
        "blur": 0.0,
    },
    "optim": {"lr": 4e-3, "warmup": 0.1},
    "trainer": {"max_steps": 60, "validate_every": 0},
}


@functools.cache
def trained() -> Path:
    """A run of three seconds on digits, trained once for all tests of a process. They copy it before they change it."""
    keep = tempfile.TemporaryDirectory()
    run = zoo.pretrain(RECIPE, out=Path(keep.name) / "run", progress=False)
    trained.keep = keep  # until the process ends
    return run / "checkpoint"


def untrained(folder: Path, backbone: str = "test_resnet", size: int = 16, data: str = "digits", **arguments) -> Path:
    """A checkpoint of a network as it is made, with numbers in its BatchNorms, for which the order of layers could be
    mistaken.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = zoo.create_task(
            "simclr", zoo.create_backbone(backbone, size=size, **arguments), hidden=16, outputs=8, flip=0.0
        )
        task.backbone.train()(torch.rand(32, task.backbone.channels, size, size))
    about = a_card()["data"] | {"name": data, "size": size}
    return export(task.eval(), folder, a_card(name=folder.name, data=about, metrics=[], check=None))


def pictures(
    folder: Path, images: int = 90, size: int = 16, classes: tuple[str, ...] = ("left", "right", "top")
) -> Path:
    """A folder per class with generated pictures in it."""
    made = generate(ENTRIES["emoji"].info, size=size, images=images)
    for number, (image, kind) in enumerate(zip(made.fields["image"], torch.arange(images) % 10, strict=True)):
        place = folder / classes[int(kind) * len(classes) // 10]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number:03}.png")
    return folder

"""Small tasks and generated batches, on which the promises are tried."""

from __future__ import annotations

import torch

from zoo.backbones import Backbone, create_backbone
from zoo.data.generated import generate
from zoo.data.info import DataInfo
from zoo.draws import Draw, counted
from zoo.errors import ZooError
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput

SIZES, IMAGES = (32, 24), 16  # pixels; pictures of the fixed batch
CPU = torch.device("cpu")
CONV = {"name": "test_resnet", "output_stride": 8}
VIT = {
    "name": "vit_tiny_patch16_224",
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 2,
    "class_token": False,
    "global_pool": "avg",
    "fc_norm": False,
}


def backbone_for(task: type[PretextTask], arguments: dict) -> dict:
    """Keywords of a backbone that the task takes."""
    refusals = []
    for keywords in (CONV, VIT):
        try:
            made = make(task, keywords, SIZES[0], arguments)
            run(made, batch_of(task, SIZES[0]))
            return keywords
        except ZooError as error:
            refusals.append(f"{keywords['name']}: {error}")
    raise AssertionError(
        f"{task.__name__} can be trained with neither a convolutional backbone nor a ViT: {'; '.join(refusals)}"
    )


def make(task: type[PretextTask], keywords: dict, size: int, arguments: dict) -> PretextTask:
    keywords = dict(keywords)
    backbone: Backbone = create_backbone(keywords.pop("name"), size=size, **keywords)
    return task(backbone, **arguments).train()


def batch_of(task: type[PretextTask], size: int, images: int = IMAGES, channels: int = 3) -> dict:
    """Only the fields that the task says it needs, and `index`."""
    fields = tuple(dict.fromkeys(("image", *task.needs)))
    info = DataInfo(
        name="generated",
        fields=fields,
        channels=channels,
        size=size,
        classes=("a", "b", "c"),
        version="1",
        license="CC0-1.0",
        attribution="nobody",
        homepage="",
        splits={"train": images, "validation": 0, "test": 0},
        summary="coloured blobs",
    )
    batch = {name: values for name, values in generate(info, images=images).fields.items() if name in task.needs}
    return batch | {"index": torch.arange(images)}


def views_of(task: PretextTask, batch: dict, *counters: int) -> tuple:
    with torch.no_grad(), counted(CPU, *(counters or (Draw.TRAINING, 0))):
        return task.views(batch)


def run(task: PretextTask, batch: dict, *counters: int) -> TaskOutput:
    return task(views_of(task, batch, *counters))

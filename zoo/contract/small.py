"""Small tasks and generated batches, on which the promises are tried."""

from __future__ import annotations

import itertools

import torch

from zoo.backbones import create_backbone
from zoo.data.generated import generate
from zoo.data.info import DataInfo
from zoo.draws import Draw, counted
from zoo.errors import ZooError
from zoo.fields import Audio, Text, given_to_backbone
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput

SIZES, IMAGES = (32, 24), 16  # pixels; samples of the fixed batch
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
BERT = {
    "name": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocabulary": 64,
    "hidden_dropout_prob": 0.0,  # forward draws nothing
    "attention_probs_dropout_prob": 0.0,
}
AUDIO = {"name": "audio", "model": "test_resnet", "mels": 32}
SMALL = {"image": (CONV, VIT), "text": (BERT,), "audio": (AUDIO,)}  # networks that are tried, by what they read
TEXT, SOUND = Text(12), Audio(8000, 0.5)


def backbone_for(task: type[PretextTask], arguments: dict) -> dict:
    """Keywords of small networks that the task takes: of its backbone or, where it has several, by tower."""
    refusals = []
    for chosen in itertools.product(*(SMALL[kind] for kind in task.towers.values())):
        keywords = dict(zip(task.towers, chosen, strict=True))
        keywords = keywords["backbone"] if list(keywords) == ["backbone"] else keywords
        try:
            made = make(task, keywords, SIZES[0], arguments)
            run(made, batch_of(task, SIZES[0]))
            return keywords
        except ZooError as error:
            refusals.append(f"{' and '.join(network['name'] for network in chosen)}: {error}")
    tried = "a convolutional backbone nor a ViT" if "image" in task.towers.values() else "the networks that were tried"
    raise AssertionError(f"{task.__name__} can be trained with neither {tried}: {'; '.join(refusals)}")


def make(task: type[PretextTask], keywords: dict, size: int, arguments: dict) -> PretextTask:
    """The task on small networks, with the keywords that `backbone_for` gives."""
    info, towers = info_of(task, size), {}
    for tower, words in ({"backbone": keywords} if "name" in keywords else keywords).items():
        kind = info.kinds[task.towers[tower]]
        towers[tower] = create_backbone(**words, **given_to_backbone(kind))
        if towers[tower].needs_learning:
            towers[tower].learn(generate(info, images=IMAGES).fields[towers[tower].field])
    return task(**towers, **arguments).train()


def info_of(task: type[PretextTask], size: int, images: int = IMAGES, channels: int = 3) -> DataInfo:
    """A generated set with the fields that the task and its networks read."""
    fields = tuple(dict.fromkeys((*task.towers.values(), *task.needs)))
    kinds = {"text": TEXT, "audio": SOUND}
    return DataInfo(
        name="generated",
        fields=fields,
        channels=channels if "image" in fields else 0,
        size=size if "image" in fields else 0,
        classes=("a", "b", "c"),
        version="1",
        license="CC0-1.0",
        attribution="nobody",
        splits={"train": images, "validation": 0, "test": 0},
        summary="generated samples",
        kinds={name: kind for name, kind in kinds.items() if name in fields},
    )


def batch_of(task: type[PretextTask], size: int, images: int = IMAGES, channels: int = 3) -> dict:
    """Only the fields that the task says it needs, and `index`."""
    fields = generate(info_of(task, size, images, channels), images=images).fields
    return {name: values for name, values in fields.items() if name in task.needs} | {"index": torch.arange(images)}


def views_of(task: PretextTask, batch: dict, *counters: int) -> tuple:
    with torch.no_grad(), counted(CPU, *(counters or (Draw.TRAINING, 0))):
        return task.views(batch)


def run(task: PretextTask, batch: dict, *counters: int) -> TaskOutput:
    return task(views_of(task, batch, *counters))

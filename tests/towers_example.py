"""A plugin in miniature: three tasks that aren't shipped and two data sets, registered by their entry points alone.

One task reads text alone, one has two towers, and one hides patches of images of 128 x 32 pixels.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.data.dataset import Dataset
from zoo.data.info import DataInfo
from zoo.fields import Image, Label, Text, height_width
from zoo.grid import rows_of
from zoo.losses import nt_xent
from zoo.masks import patchify, random_keep
from zoo.ranges import Part, Positive
from zoo.tasks.base import PretextTask, TaskOutput
from zoo.views import to_float


class HiddenWords(PretextTask):
    """Guess the mean embedding of a text from the text with some tokens hidden; https://arxiv.org/abs/1810.04805."""

    needs = ("text",)
    towers = {"backbone": "text"}

    def __init__(self, backbone: Backbone, share: Part = 0.3):
        super().__init__(backbone)
        self.share = share
        self.mask_token = nn.Parameter(torch.zeros(backbone.num_features))
        self.head = nn.Linear(backbone.num_features, backbone.vocabulary)

    def views(self, batch: dict) -> tuple:
        x = self.backbone.prepare(batch["text"])
        hidden = (torch.rand(x["input_ids"].shape, device=self.device) < self.share) & (x["attention_mask"] > 0)
        hidden[:, 1] = True  # at least one token of each text
        return x, hidden

    def forward(self, views: tuple) -> TaskOutput:
        x, hidden = views
        read = self.backbone.tokens(x, hidden, self.mask_token)
        with torch.autocast(self.device.type, enabled=False):
            loss = nn.functional.cross_entropy(self.head(read.float())[hidden], x["input_ids"][hidden])
        # The pooled features learn too: every parameter of the network gets a gradient.
        return TaskOutput(
            loss + 1e-3 * self.backbone.pool(x).float().square().mean(), {"hidden": hidden.float().mean()}
        )

    def figure(self, batch: dict) -> dict[str, Tensor | str]:
        return {"texts": "\n".join(batch["text"][:4])}


class TwoTowers(PretextTask):
    """Pull an image and its text together: contrast over the batch; https://arxiv.org/abs/2103.00020."""

    needs = ("image", "text")
    towers = {"image": "image", "text": "text"}

    def __init__(self, image: Backbone, text: Backbone, temperature: Positive = 0.1, dim: int = 16):
        super().__init__(image, text)
        self.temperature = temperature
        self.seen, self.read = nn.Linear(image.num_features, dim), nn.Linear(text.num_features, dim)

    def views(self, batch: dict) -> tuple:
        return to_float(batch["image"]), self.text.prepare(batch["text"])

    def forward(self, views: tuple) -> TaskOutput:
        image, text = views
        return TaskOutput(nt_xent(self.seen(self.image.pool(image)), self.read(self.text.pool(text)), self.temperature))

    def figure(self, batch: dict) -> dict[str, Tensor | str]:
        return {"images": rows_of(batch["image"][:4]), "texts": "\n".join(batch["text"][:4])}


class HiddenBands(PretextTask):
    """Paint the hidden patches of a rectangle from the visible ones' mean; https://arxiv.org/abs/2111.06377."""

    def __init__(self, backbone: Backbone, ratio: Part = 0.5):
        backbone.require_patches("hidden-bands")
        super().__init__(backbone)
        self.count = backbone.grid[0] * backbone.grid[1]
        self.keep = max(1, round((1 - ratio) * self.count))
        self.head = nn.Linear(backbone.num_features, self.count * backbone.patch_size**2 * backbone.channels)

    def views(self, batch: dict) -> tuple:
        image = self.backbone.repeated(to_float(batch["image"]))
        return image, *random_keep(len(image), self.count, self.keep, image.device)

    def forward(self, views: tuple) -> TaskOutput:
        image, keep, mask = views
        painted = self.head(self.backbone.pooled(self.backbone.tokens(image, keep))).view(len(image), self.count, -1)
        error = (painted.float() - patchify(image, self.backbone.patch_size)).square().mean(-1)
        return TaskOutput((error * mask).sum() / mask.sum())


CLASSES = ("cats", "dogs")
WORDS = (("cat", "purrs", "whiskers", "milk"), ("dog", "barks", "tail", "bone"))
SPLITS = {"train": 32, "validation": 8, "test": 8}


class Samples:
    """A data set of a plugin: 48 grey images of two classes, brighter above or all over, and a text of each."""

    def __init__(self, name: str, size: tuple[int, int]):
        self.info = DataInfo(
            name=name,
            kinds={"image": Image(1, *size), "text": Text(12), "label": Label(CLASSES)},
            license="CC0-1.0",
            splits=dict(SPLITS),
        )

    def load(self, size: int | tuple[int, int] | None = None) -> Dataset:
        height, width = height_width(size or self.info.size)
        draw = np.random.default_rng(0)
        label = np.arange(48) % 2
        image = draw.integers(0, 120, (48, 1, height, width), dtype=np.uint8)
        for row, kind in enumerate(label):
            image[row, 0, : height // 2 if kind else height] += 100
        text = [f"the {' '.join(draw.choice(WORDS[kind], 5))} {row}" for row, kind in enumerate(label)]
        ends = np.cumsum([0, *SPLITS.values()])
        rows = {name: torch.arange(ends[k], ends[k + 1]) for k, name in enumerate(SPLITS)}
        fields = {"image": torch.from_numpy(image), "text": text, "label": torch.from_numpy(label)}
        return Dataset(replace(self.info, size=(height, width)), fields, rows, f"{self.info.name}-{height}-{width}")


SQUARES, BANDS = Samples("tower-squares", (32, 32)), Samples("tower-bands", (128, 32))
TASKS = {"hidden-words": "HiddenWords", "two-towers": "TwoTowers", "hidden-bands": "HiddenBands"}
POINTS = (
    "[zoo.tasks]\n"
    + "".join(f"{name} = towers_example:{task}\n" for name, task in TASKS.items())
    + "[zoo.data]\ntower-squares = towers_example:SQUARES\ntower-bands = towers_example:BANDS\n"
)


BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocabulary": 96}
BERT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # each process would draw its own
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "class_token": False, "global_pool": "avg"}
TRAINER = {"max_steps": 6, "validate_every": 1, "save_every": 1, "accelerator": "cpu"}


def recipe(kind: str, batch: int = 8, **trainer) -> dict:
    """The recipe of one of the three tasks."""
    data = {"name": "tower-bands" if kind == "hidden-bands" else "tower-squares", "batch_size": batch}
    backbone = {
        "hidden-words": {"name": "bert", **BERT},
        "two-towers": {"image": {"name": "test_resnet"}, "text": {"name": "bert", **BERT}},
        "hidden-bands": {"name": "vit_tiny_patch16_224", **VIT, "fc_norm": False, "in_chans": 1},
    }[kind]
    return {
        "seed": 0,
        "data": data,
        "backbone": backbone,
        "task": {"name": kind},
        "optim": {"lr": 1e-3},
        "trainer": TRAINER | trainer,
    }


if __name__ == "__main__":  # torchrun starts it as `towers_example.py KIND OUT`, in two processes
    import zoo

    kind, out = sys.argv[1:]
    zoo.pretrain(recipe(kind, batch=4, devices=2), out=out, progress=False)

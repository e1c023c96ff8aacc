"""Let a network that has learned already describe every picture, and let another, often smaller one, learn to say the
same.

              +--> backbone --> pool --> head --> said (B, D) --+
    image ----+                                                 +--> squared error, or 1 - cosine
              +..> teacher, frozen ..> pool, standardised .....>+    (+ distances between images)

Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, "FitNets: Hints for Thin Deep Nets",
https://arxiv.org/abs/1412.6550 Relations: Park, Kim, Lu, Cho 2019, "Relational Knowledge Distillation",
https://arxiv.org/abs/1904.05068

Differs: what is matched is the teacher's pooled features, each number with mean 0 and deviation 1, so that none is too
small to count; the paper matches a feature map in the middle, and trains on labels too.
Differs: a teacher with more features than `outputs` is seen through a fixed random rotation that keeps the first so
many; then the student's head doesn't depend on the teacher, and its checkpoint can be read where the teacher is not.
Differs: of the relations, distances are matched and angles are not.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.losses import gather, negative_cosine, normalized, wide
from zoo.paths import expanded
from zoo.ranges import Count, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import luminance, random_resized_crop, resize, to_float

ROTATION = 0  # seed of the rotation that wide teachers are seen through


@register_task("distillation")
class Distillation(PretextTask):
    """Regression of a frozen teacher's features from those of the student, both of one view.

    The teacher is no part of the task's state: it is read when the first views are made, and its features are a target
    like any other.

    Args:
        teacher: a checkpoint by its name in the hub, by its folder, or by hf://organisation/name@revision, which
            downloads it; or a model of timm's own likewise, as hf://timm/resnet18.a1_in1k or the folder of one with
            config.json and model.safetensors.
        loss: cosine between the standardised features, which leaves their length aside, or mse, their squared
            difference.
        relational: weight of a second term, that pictures should be as far from each other for the student as they are
            for the teacher, measured in mean distances; 0 leaves it out.
        outputs: width of the space in which the two are compared.
        smallest_crop: least share of the picture's area that a view shows, 0 to 1.
        flip: chance of a mirrored view.
    """

    def __init__(
        self,
        backbone: Backbone,
        teacher: str = "simclr-resnet10t-fashion-mnist",
        loss: Literal["cosine", "mse"] = "cosine",
        relational: Weight = 0.0,
        outputs: Count = 256,
        smallest_crop: Share = 0.3,
        flip: Share = 0.5,
    ):
        super().__init__(backbone)
        self.teacher, self.loss, self.relational, self.outputs = teacher, loss, relational, outputs
        self.smallest_crop, self.flip = smallest_crop, flip
        self.head = nn.Linear(backbone.num_features, outputs)
        self.standard = nn.BatchNorm1d(outputs, affine=False)  # of the teacher's features, over the global batch
        self._read: list[Backbone] = []  # in a list: what a module isn't given as an attribute is no part of its state

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """One view (B, C, H, W) and what the teacher says of it (B, outputs). Raises ZooError where there is no such
        teacher.
        """
        teacher = self.frozen(batch["image"].device)
        size = max(self.backbone.size, teacher.size)
        image = random_resized_crop(batch["image"], size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        return resize(image, self.backbone.size), self.told(teacher, image)

    def frozen(self, device: torch.device) -> Backbone:
        """The teacher in eval mode, read once."""
        if not self._read:
            self._read.append(load_teacher(self.teacher))
        return self._read[0].to(device)

    def told(self, teacher: Backbone, image: Tensor) -> Tensor:
        """(B, C, H, W) of any size -> the teacher's features (B, outputs), with zeros where it has fewer."""
        image = resize(luminance(image) if teacher.channels == 1 else image, teacher.size)
        features = teacher.pool(image)
        surplus = features.shape[1] - self.outputs
        return (
            F.pad(features, (0, -surplus))
            if surplus <= 0
            else features @ rotation(features.shape[1]).to(features)[:, : self.outputs]
        )

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        image, told = views
        pooled = self.backbone.pool(image)
        said = self.head(pooled)
        with torch.autocast(image.device.type, enabled=False):
            said, target = wide(said), self.standard(told)
            agreement = -negative_cosine(said, target)
            loss = (said - target).square().mean() if self.loss == "mse" else 1 - agreement
            logs = {self.loss: loss.detach(), "agreement": agreement.detach()}
            if self.relational > 0:
                relations = F.smooth_l1_loss(relative_distances(gather(pooled)), relative_distances(gather(told)))
                loss, logs = loss + self.relational * relations, logs | {"relational": relations.detach()}
        return TaskOutput(loss, logs)

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures, below each the one of the batch that is nearest to it for the teacher, and the one that is for the
        student.
        """
        image = to_float(batch["image"])
        told, own = self.told(self.frozen(image.device), image), self.backbone.pool(resize(image, self.backbone.size))
        return {"nearest": rows_of(image[:8], *(image[nearest(x)[:8]] for x in (told, own)))}


def load_teacher(name: str) -> Backbone:
    """The frozen backbone of a checkpoint: a folder of ours or timm's, a name in the hub, or an address hf:// of
    either. Raises ZooError.
    """
    from zoo.checkpoint.read import (
        load_backbone,  # above this file in the order of imports: a teacher is a finished checkpoint
    )
    from zoo.checkpoint.timm_folder import find_timm, load_timm
    from zoo.hub.hub import find

    local = str(expanded(name.removeprefix("local-dir:"))) if name.startswith("local-dir:") else name
    try:
        folder = find_timm(local)
        backbone = load_backbone(find(local)) if folder is None else load_timm(folder)
    except ZooError as error:
        raise ZooError(f"task.teacher is {name!r}, which can't be used: {error}") from error
    return backbone.eval().requires_grad_(False)


def relative_distances(x: Tensor) -> Tensor:
    """(B, D) -> Euclidean distances of all pairs, B (B - 1) / 2 of them, in units of their mean; of a single row none,
    which is one of 0.
    """
    distance = F.pdist(wide(x)) if len(x) > 1 else wide(x).sum(1) * 0
    return distance / distance.mean().clamp(min=1e-12)


def rotation(features: int) -> Tensor:
    """An orthogonal matrix (D, D), always the same."""
    drawn = torch.randn(features, features, generator=torch.Generator().manual_seed(ROTATION), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q


def nearest(x: Tensor) -> Tensor:
    """(B, D) -> for each row the index of the most similar other one (B,), by cosine."""
    similarity = normalized(x) @ normalized(x).T
    return similarity.fill_diagonal_(-torch.inf).argmax(1)

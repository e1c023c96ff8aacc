"""Find the other view of a picture among thousands of other pictures, as a slowly following copy of the network sees
them.

              +--> view 1 --> backbone --> pool --> projector --> query --+
    image ----+                                                           +--> InfoNCE: its own key
              +--> view 2 ..> teacher that follows ..> key ..............>+    among the others

    v2: the others are a queue of earlier keys
    v3: the others are the keys of the batch; a predictor stands behind the projector; and the
        same with the views exchanged

He, Fan, Wu, Xie, Girshick 2020, "Momentum Contrast for Unsupervised Visual Representation Learning",
https://arxiv.org/abs/1911.05722 Chen, Fan, Girshick, He 2020, "Improved Baselines with Momentum Contrastive Learning"
(v2), https://arxiv.org/abs/2003.04297 Chen, Xie, He 2021, "An Empirical Study of Training Self-Supervised Vision
Transformers" (v3), https://arxiv.org/abs/2104.02057

Differs: BatchNorm uses the statistics of the global batch, where v2 shuffles pictures among devices so that a query
can't know its key by them.
Differs: the teacher's momentum is 0.99 by default, v2's 0.999, and the queue is shorter, for runs of hundreds of steps.
Differs: the patch embedding of a ViT learns like everything else, where v3 freezes it for the sake of large batches.
Differs: v3's projector has two layers and its predictor no BatchNorm at the end, as the paper gives a ResNet; the
authors' code gives a ViT three layers and that BatchNorm.
Differs: views are blurred half as often by default; v3 blurs the first always and the second with a chance of 0.1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.heads import Queue, Teacher, mlp, projector
from zoo.losses import gather, info_nce, normalized
from zoo.optim import cosine
from zoo.ranges import Count, Positive, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_solarize, simclr_view


@register_task("moco")
class MoCo(PretextTask):
    """Contrast of a student's queries with its teacher's keys.

    Args:
        version: v2 contrasts one view with a queue of earlier keys; v3 has a predictor and contrasts both views with
            the global batch.
        temperature: softness of the contrast, above 0; lower looks harder at the nearest negatives.
        momentum: of the teacher, 0 to 1; in v2 for the whole run, in v3 at the start, and it ends at 1 along half a
            cosine.
        queue: keys that v2 remembers, at least 1; v3 has none.
        hidden: width of the hidden layers of the heads.
        outputs: width of the space in which views are compared.
        smallest_crop: least share of the picture's area that a view shows, 0 to 1.
        jitter: strength of the colour jitter; 1 is SimCLR's, 0 none.
        grayscale: chance of a view without colour.
        blur: chance of a blurred view; in v3 of a blurred first view, and a tenth of it for the second.
        solarize: chance that the second view of v3 is solarised.
        flip: chance of a mirrored view; 0 for writing and other things that have a side.
    """

    training_only = ("teacher", "queue")

    def __init__(
        self,
        backbone: Backbone,
        version: Literal["v2", "v3"] = "v2",
        temperature: Positive = 0.2,
        momentum: Share = 0.99,
        queue: Count = 4096,
        hidden: Count = 512,
        outputs: Count = 128,
        smallest_crop: Share = 0.2,
        jitter: Weight = 0.5,
        grayscale: Share = 0.2,
        blur: Share = 0.5,
        solarize: Share = 0.2,
        flip: Share = 0.5,
    ):
        super().__init__(backbone)
        self.version, self.temperature, self.momentum = version, temperature, momentum
        self.smallest_crop, self.jitter, self.grayscale, self.flip = smallest_crop, jitter, grayscale, flip
        second_blur, second_solarize = (blur, 0.0) if version == "v2" else (blur / 10, solarize)
        self.blurs, self.solarizes = (blur, second_blur), (0.0, second_solarize)
        if version == "v2":
            self.projector = nn.Sequential(
                nn.Linear(backbone.num_features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
            )
            self.queue = Queue(queue, outputs)
        else:
            self.projector = projector(backbone.num_features, hidden, outputs)
            self.predictor = mlp(outputs, hidden, outputs)
            self.training_only = ("teacher",)
        self.teacher = Teacher(backbone, self.projector)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Two views, each (B, C, H, W): of one kind in v2, of two in v3."""
        return self._view(batch["image"], 0), self._view(batch["image"], 1)

    def _view(self, image: Tensor, which: int) -> Tensor:
        view = simclr_view(
            image,
            self.backbone.size,
            scale=(self.smallest_crop, 1.0),
            jitter=self.jitter,
            grayscale=self.grayscale,
            blur=self.blurs[which],
            flip=self.flip,
        )
        return random_solarize(view, p=self.solarizes[which])

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        return self.from_queue(*views) if self.version == "v2" else self.from_batch(*views)

    def from_queue(self, first: Tensor, second: Tensor) -> TaskOutput:
        """Version 2: the first view asks, the second answers, and the queue holds what else there is."""
        query, key = self.projector(self.backbone.pool(first)), self.teacher(second)
        loss = info_nce(query, key, self.queue.read(), self.temperature)
        self.queue.push(key)
        return TaskOutput(loss, {"alignment": torch.cosine_similarity(query.detach(), key).mean()})

    def from_batch(self, first: Tensor, second: Tensor) -> TaskOutput:
        """Version 3: each view asks in turn, and the other pictures of the global batch are what else there is."""
        queries = [self.predictor(self.projector(self.backbone.pool(view))) for view in (first, second)]
        keys = [self.teacher(view) for view in (first, second)]
        loss = contrast(queries[0], keys[1], self.temperature) + contrast(queries[1], keys[0], self.temperature)
        return TaskOutput(loss, {"alignment": torch.cosine_similarity(queries[0].detach(), keys[1]).mean()})

    def after_step(self, progress: float) -> None:
        momentum = self.momentum if self.version == "v2" else cosine(self.momentum, 1.0, progress)
        self.teacher.follow(self.backbone, self.projector, momentum=momentum)

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Each picture above its two views; and above the other picture of the batch that the teacher finds most like
        it.
        """
        image = batch["image"]
        first, second = self.views({"image": image[:8]})
        keys = normalized(
            self.teacher(
                simclr_view(image, self.backbone.size, (1.0, 1.0), jitter=0.0, grayscale=0.0, blur=0.0, flip=0.0)
            )
        )
        nearest = (keys @ keys.T).fill_diagonal_(-2.0).argmax(1)
        return {"views": rows_of(image[:8], first, second), "nearest": rows_of(image[:8], image[nearest[:8]])}


def contrast(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Contrast of each query (B, D) with its key (B, D) against the keys of the global batch -> scalar, times twice the
    temperature.

    The sum over the keys is of all ranks, the mean over the queries of this one. The factor is the authors', and keeps
    the size of the gradient where the temperature changes. No gradient goes into `key`.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = normalized(query), normalized(key.detach())
        partner, everyone = (query * key).sum(1), query @ gather(key).T
        return 2 * temperature * ((everyone / temperature).logsumexp(1) - partner / temperature).mean()

"""Two views of one picture: the network predicts from one what a slowly following copy of itself makes of the other,
without any negatives.

              +--> view 1 --> backbone --> pool --> projector --> predictor --> guess --+
    image ----+                                                                         |
              +--> view 2 ..> teacher: copies of backbone, projector ..> target .......>+
                                                                                        |
              2 - 2 cosine, and the same with the views exchanged <---------------------+

Grill, Strub, Altche, Tallec, Richemond et al. 2020, "Bootstrap Your Own Latent: A New Approach to Self-Supervised
Learning", https://arxiv.org/abs/2006.07733

Differs: the teacher's momentum starts at 0.99, for runs of hundreds of steps instead of hundreds of epochs.
Differs: by default half of the first views are blurred instead of all, since blur takes much from a picture of 28 to 64
pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.heads import Teacher, mlp
from zoo.losses import negative_cosine
from zoo.optim import cosine
from zoo.ranges import Count, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_solarize, simclr_view


@register_task("byol")
class BYOL(PretextTask):
    """A student with a predictor regresses its teacher's projection of the other view.

    Args:
        momentum: of the teacher at the start, 0 to 1; it ends at 1 along half a cosine.
        hidden: width of the hidden layers of projector and predictor.
        outputs: width of the space in which views are compared.
        smallest_crop: least share of the picture's area that a view shows, 0 to 1.
        jitter: strength of the colour jitter; 1 is SimCLR's, 0 none.
        grayscale: chance of a view without colour.
        blur: chance that the first view is blurred, 1 in the paper; the second is with a tenth of it.
        solarize: chance that the second view is solarised.
        flip: chance of a mirrored view; 0 for writing and other things that have a side.
    """

    training_only = ("teacher",)

    def __init__(
        self,
        backbone: Backbone,
        momentum: Share = 0.99,
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
        self.momentum, self.smallest_crop, self.jitter, self.grayscale = momentum, smallest_crop, jitter, grayscale
        self.blur, self.solarize, self.flip = blur, solarize, flip
        self.projector = mlp(backbone.num_features, hidden, outputs)
        self.predictor = mlp(outputs, hidden, outputs)
        self.teacher = Teacher(backbone, self.projector)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Two views, each (B, C, H, W), of which only the first is often blurred and only the second ever solarised."""
        first, second = self._view(batch["image"], self.blur), self._view(batch["image"], self.blur / 10)
        return first, random_solarize(second, p=self.solarize)

    def _view(self, image: Tensor, blur: float) -> Tensor:
        return simclr_view(
            image,
            self.backbone.size,
            scale=(self.smallest_crop, 1.0),
            jitter=self.jitter,
            grayscale=self.grayscale,
            blur=blur,
            flip=self.flip,
        )

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        first, second = views
        target_first, target_second = self.teacher(first), self.teacher(second)
        loss = self.distance(self.predict(first), target_second) + self.distance(self.predict(second), target_first)
        return TaskOutput(loss, {"alignment": 1 - loss.detach() / 4})

    def predict(self, view: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs): the student's guess of its teacher's projection of the other view."""
        return self.predictor(self.projector(self.backbone.pool(view)))

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean squared distance of rows after both got length 1, from 0 to 4 (eq. 2). No gradient goes into
        `target`.
        """
        return 2 + 2 * negative_cosine(prediction, target)

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.backbone, self.projector, momentum=cosine(self.momentum, 1.0, progress))

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Each picture above its two views."""
        first, second = self.views({"image": batch["image"][:8]})
        return {"views": rows_of(batch["image"][:8], first, second)}

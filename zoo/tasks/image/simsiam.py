"""From one view of a picture guess the description of another view, and let only the guess learn: then the two don't
collapse to one point.

              +--> view 1 --> backbone --> pool --> projector --> z1 --> predictor --> guess --+
    image ----+                                                                                |
              +--> view 2 --> backbone --> pool --> projector --> z2 .........................>+
                                                                                               |
              minus the cosine, and the same with the views exchanged <------------------------+

Chen, He 2021, "Exploring Simple Siamese Representation Learning", https://arxiv.org/abs/2011.10566

Differs: the predictor's learning rate follows the schedule of everything else, where the paper keeps it constant.
Differs: both views are one batch to every BatchNorm, where the authors' code gives it each view by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.heads import mlp, projector
from zoo.losses import negative_cosine, normalized
from zoo.ranges import Count, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import simclr_view


@register_task("simsiam")
class SimSiam(PretextTask):
    """Two views, a projector, a predictor, and a gradient that stops at the target. No negatives, no teacher.

    Args:
        hidden: width of the projector's two hidden layers.
        outputs: width of the space in which views are compared.
        bottleneck: width of the predictor's hidden layer; the paper has a quarter of `outputs`.
        smallest_crop: least share of the picture's area that a view shows, 0 to 1.
        jitter: strength of the colour jitter; 1 is SimCLR's, 0 none.
        grayscale: chance of a view without colour.
        blur: chance of a blurred view.
        flip: chance of a mirrored view; 0 for writing and other things that have a side.
    """

    def __init__(
        self,
        backbone: Backbone,
        hidden: Count = 512,
        outputs: Count = 512,
        bottleneck: Count = 128,
        smallest_crop: Share = 0.2,
        jitter: Weight = 0.5,
        grayscale: Share = 0.2,
        blur: Share = 0.5,
        flip: Share = 0.5,
    ):
        super().__init__(backbone)
        self.smallest_crop, self.flip = smallest_crop, flip
        self.jitter, self.grayscale, self.blur = jitter, grayscale, blur
        self.projector = projector(backbone.num_features, hidden, outputs, layers=3)
        self.predictor = mlp(outputs, bottleneck, outputs)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Two independent views, each (B, C, H, W)."""
        return self._view(batch["image"]), self._view(batch["image"])

    def _view(self, image: Tensor) -> Tensor:
        return simclr_view(
            image,
            self.backbone.size,
            scale=(self.smallest_crop, 1.0),
            jitter=self.jitter,
            grayscale=self.grayscale,
            blur=self.blur,
            flip=self.flip,
        )

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        z = self.projector(self.backbone.pool(torch.cat(views)))
        (first, second), (guess_first, guess_second) = z.chunk(2), self.predictor(z).chunk(2)
        loss = (
            negative_cosine(guess_first, second) + negative_cosine(guess_second, first)
        ) / 2  # no gradient into the targets
        return TaskOutput(loss, {"spread": spread(z)})

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures, their two views, and for the guess from each first view the second view of the batch that it comes
        nearest to.
        """
        first, second = self.views(batch)
        z = self.projector(self.backbone.pool(torch.cat([first, second])))
        guess, target = self.predictor(z[: len(first)]), z[len(first) :]
        nearest = (normalized(guess[:8]) @ normalized(target).T).argmax(1)
        return {"guesses": rows_of(batch["image"][:8], first[:8], second[:8], second[nearest])}


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """(B, D) -> scalar: the deviation of directions over this rank's pictures, times the root of D (paper, section
    4.1).

    0 where all are the same, so that everything has collapsed; 1 where they point everywhere.
    """
    return normalized(z).std(0, unbiased=False).mean() * z.shape[1] ** 0.5

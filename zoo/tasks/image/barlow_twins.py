"""Each number that describes a picture should be the same for two of its views, and should tell nothing that the other
numbers tell.

              +--> view 1 --> backbone --> pool --> projector --> z1 --+
    image ----+                                                        +--> correlations (D, D)
              +--> view 2 --> backbone --> pool --> projector --> z2 --+    --> towards the identity

Zbontar, Jing, Misra, LeCun, Deny 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
https://arxiv.org/abs/2103.03230

Differs: the weight of the redundancy term is larger by default, for a space of 256 numbers instead of 8192 has fewer
pairs to each of them.
Differs: both views are augmented with the same strength, and none is solarised; on small and on grey pictures weaker
views work better.
Differs: both views are one batch to every BatchNorm, where the authors' code gives it each view by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.heads import projector
from zoo.losses import total, wide
from zoo.ranges import Count, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import simclr_view

EPSILON = 1e-5  # of BatchNorm, which the authors standardise with


@register_task("barlow-twins")
class BarlowTwins(PretextTask):
    """The correlation of the numbers of one view with those of the other is to be the identity.

    Args:
        redundancy_weight: of correlations between different numbers, 0 or more; beside it agreement counts 1.
        hidden: width of the projector's two hidden layers.
        outputs: numbers that describe a view while training.
        smallest_crop: least share of the picture's area that a view shows, 0 to 1.
        jitter: strength of the colour jitter; 1 is SimCLR's, 0 none.
        grayscale: chance of a view without colour.
        blur: chance of a blurred view.
        flip: chance of a mirrored view; 0 for writing and other things that have a side.
    """

    def __init__(
        self,
        backbone: Backbone,
        redundancy_weight: Weight = 0.02,
        hidden: Count = 512,
        outputs: Count = 256,
        smallest_crop: Share = 0.2,
        jitter: Weight = 0.5,
        grayscale: Share = 0.2,
        blur: Share = 0.5,
        flip: Share = 0.5,
    ):
        super().__init__(backbone)
        self.redundancy_weight = redundancy_weight
        self.smallest_crop, self.flip = smallest_crop, flip
        self.jitter, self.grayscale, self.blur = jitter, grayscale, blur
        # without the last BatchNorm: the loss itself standardises
        self.projector = projector(backbone.num_features, hidden, outputs, layers=3)[:-1]

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
        first, second = self.projector(self.backbone.pool(torch.cat(views))).chunk(2)
        agreement, redundancy = barlow_twins(first, second)
        return TaskOutput(
            agreement + self.redundancy_weight * redundancy,
            {"agreement": agreement.detach(), "redundancy": redundancy.detach()},
        )

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures above their two views; and the size of each correlation (white is 1), whose diagonal is to be white
        and the rest black.
        """
        first, second = self.views(batch)
        shown = correlation(*self.projector(self.backbone.pool(torch.cat([first, second]))).chunk(2)).abs().clamp(0, 1)
        return {
            "views": rows_of(batch["image"][:8], first[:8], second[:8]),
            "correlation": shown.expand(3, -1, -1).float().cpu(),
        }


def barlow_twins(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two views (B, D) of the same pictures -> how far their correlations over all ranks are from the identity, as two
    sums of squares: of 1 - the D on the diagonal, and of the D (D - 1) beside it.
    """
    with torch.autocast(first.device.type, enabled=False):
        c = correlation(first, second)
        diagonal = c.diagonal()
        return (1 - diagonal).square().sum(), c.square().sum() - diagonal.square().sum()


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """(B, D) and (B, D) -> (D, D): how each number of the one goes with each of the other, from -1 to 1, over the
    pictures of all ranks.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = wide(first), wide(second)
        count = total(first.new_tensor(float(len(first))))
        first, second = standardized(first, count), standardized(second, count)
        return total(first.T @ second) / count


def standardized(x: Tensor, count: Tensor) -> Tensor:
    """(B, D) with mean 0 and variance 1 in each of the D, over the `count` rows of all ranks."""
    centred = x - total(x.sum(0)) / count
    variance = total(centred.square().sum(0)) / count
    return centred * (variance + EPSILON).rsqrt()

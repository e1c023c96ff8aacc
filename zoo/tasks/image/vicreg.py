"""Two views of a picture get the same description, while every number in it has to vary and no two may vary together.

              +--> view 1 --> backbone --> pool --> expander --> z1 --+--> invariance: z1 near z2
    image ----+                                                       +--> variance: at least 1
              +--> view 2 --> backbone --> pool --> expander --> z2 --+--> covariance: towards 0

Bardes, Ponce, LeCun 2022, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
https://arxiv.org/abs/2105.04906

Differs: both views are augmented with the same strength, and none is solarised; on small and on grey pictures weaker
views work better.
Differs: both views are one batch to every BatchNorm, where the authors' code gives it each view by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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

EPSILON = 1e-4  # under the root of the variance, as the authors have it


@register_task("vicreg")
class VICReg(PretextTask):
    """Invariance between views, a floor under each number's deviation, and no covariance between numbers.

    Args:
        invariance: weight of the squared distance between the views.
        variance: weight of what deviations lack to 1; without it everything collapses to a point.
        covariance: weight of the squared covariances; without it all numbers may say the same.
        hidden: width of the expander's two hidden layers.
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
        invariance: Weight = 25.0,
        variance: Weight = 25.0,
        covariance: Weight = 1.0,
        hidden: Count = 512,
        outputs: Count = 256,
        smallest_crop: Share = 0.2,
        jitter: Weight = 0.5,
        grayscale: Share = 0.2,
        blur: Share = 0.5,
        flip: Share = 0.5,
    ):
        super().__init__(backbone)
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self.smallest_crop, self.flip = smallest_crop, flip
        self.jitter, self.grayscale, self.blur = jitter, grayscale, blur
        # without the last BatchNorm, which would fix the variance
        self.expander = projector(backbone.num_features, hidden, outputs, layers=3)[:-1]

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
        first, second = self.expander(self.backbone.pool(torch.cat(views))).chunk(2)
        with torch.autocast(first.device.type, enabled=False):
            first, second = wide(first), wide(second)
            covariances = covariance_matrix(first), covariance_matrix(second)
            terms = {
                "invariance": (first - second).square().mean(),
                "variance": sum(flatness(c) for c in covariances) / 2,
                "covariance": sum(entanglement(c) for c in covariances),
            }
            loss = (
                self.invariance * terms["invariance"]
                + self.variance * terms["variance"]
                + self.covariance * terms["covariance"]
            )
        return TaskOutput(loss, {name: term.detach() for name, term in terms.items()})

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures above their two views; and the size of each covariance (white is 1), whose diagonal is to be white
        and the rest black.
        """
        first, second = self.views(batch)
        shown = covariance_matrix(wide(self.expander(self.backbone.pool(first)))).abs().clamp(0, 1)
        return {
            "views": rows_of(batch["image"][:8], first[:8], second[:8]),
            "covariance": shown.expand(3, -1, -1).float().cpu(),
        }


def covariance_matrix(x: Tensor) -> Tensor:
    """(B, D) -> (D, D), over the pictures of all ranks; zeros where there is but one."""
    count = total(x.new_tensor(float(len(x))))
    centred = x - total(x.sum(0)) / count
    return total(centred.T @ centred) / (count - 1).clamp(min=1)


def flatness(covariance: Tensor) -> Tensor:
    """(D, D) -> scalar from 0 to 1: what the deviations of the D numbers lack to 1, on average."""
    return F.relu(1 - (covariance.diagonal() + EPSILON).sqrt()).mean()


def entanglement(covariance: Tensor) -> Tensor:
    """(D, D) -> scalar from 0: the squares of all covariances between different numbers, summed, for each of the D."""
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / len(covariance)

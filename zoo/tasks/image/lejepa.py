"""All views of a picture should lie where their mean lies, while all pictures together look like a cloud of normally
distributed points.

    large and small views --> backbone --> pool --> projector --> z (V, B, D) --+
                                                                                |
        prediction: z near the mean of the image's large views <----------------+
                                                                                |
        normality: z along random directions as N(0, 1), by Epps-Pulley <-------+

Balestriero, LeCun 2025, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics",
https://arxiv.org/abs/2511.08544

That the points are normally distributed is tested along random directions, by how far their characteristic function is
from the normal one (Epps, Pulley 1983): no teacher, no stopped gradient and no negatives are needed against collapse.

Differs: two small views instead of six to eight, and 128 directions at a time, which suits 64 numbers to a picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.heads import mlp
from zoo.losses import total, wide
from zoo.ranges import Count, LargeCrop, Natural, Part, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import in_turn, multi_crop

POINTS, FURTHEST = 9, 5.0  # of the integral's positive half: the authors' 17 points from -5 to 5


@register_task("lejepa")
class LeJEPA(PretextTask):
    """Prediction of the mean of a picture's views, and a sketched test of normality (SIGReg).

    Args:
        normality: weight of the test, above 0, or everything collapses, and below 1; what is left to 1 is the weight of
            the prediction.
        directions: along which the test is made, drawn anew at every step.
        small_count: views of small parts, beside the two of the whole; 0 is none.
        small_size: side of small views in pixels.
        hidden: width of the projector's two hidden layers.
        outputs: width of the space in which views are compared.
        smallest_crop: least share of the picture's area that a large view shows, 0.05 to 1; a small view shows 0.05 to
            this.
        jitter: strength of the colour jitter; 1 is SimCLR's, 0 none.
        grayscale: chance of a view without colour.
        blur: chance of a blurred view.
        flip: chance of a mirrored view; 0 for writing and other things that have a side.
    """

    def __init__(
        self,
        backbone: Backbone,
        normality: Part = 0.05,
        directions: Count = 128,
        small_count: Natural = 2,
        small_size: Count = 16,
        hidden: Count = 512,
        outputs: Count = 64,
        smallest_crop: LargeCrop = 0.3,
        jitter: Weight = 0.5,
        grayscale: Share = 0.2,
        blur: Share = 0.5,
        flip: Share = 0.5,
    ):
        super().__init__(backbone)
        if small_count:
            backbone.require_size(small_size, "task.small_size")
        self.normality, self.directions, self.outputs = normality, directions, outputs
        self.small_count, self.small_size = small_count, small_size
        self.smallest_crop, self.flip = smallest_crop, flip
        self.jitter, self.grayscale, self.blur = jitter, grayscale, blur
        self.projector = mlp(backbone.num_features, hidden, outputs, layers=3)

    def views(self, batch: dict) -> tuple[Tensor, ...]:
        """Normal numbers (D, directions); two views of the whole, (B, 2, C, H, W); and those of small parts, (B,
        small_count, C, small_size, small_size), if there are.
        """
        kinds = multi_crop(
            batch["image"],
            self.backbone.size,
            self.small_size,
            self.small_count,
            self.smallest_crop,
            self.jitter,
            self.grayscale,
            self.blur,
            self.flip,
        )
        return torch.randn(self.outputs, self.directions, device=kinds[0].device), *kinds

    def forward(self, views: tuple[Tensor, ...]) -> TaskOutput:
        normal, *kinds = views
        features = torch.cat(
            [self.backbone.pool(torch.cat(in_turn(kind))) for kind in kinds]
        )  # (V B, D), view after view
        z = self.projector(features).unflatten(0, (2 + self.small_count, -1))  # (V, B, D)
        with torch.autocast(z.device.type, enabled=False):
            z = wide(z)
            directions = F.normalize(
                total(normal.to(z.dtype)), dim=0
            )  # the sum of what the ranks drew: one set for all of them
            prediction = (z - z[:2].mean(0)).square().mean()
            unlike = epps_pulley(z @ directions).mean()
            loss = (1 - self.normality) * prediction + self.normality * unlike
        return TaskOutput(loss, {"prediction": prediction.detach(), "epps_pulley": unlike.detach()})

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """The views of a few pictures; and the first two numbers of all, -4 to 4 each: to be a round cloud, densest in
        the middle.
        """
        few = batch["image"][:8]
        _, *kinds = self.views(batch)
        shown = [view[:8] for view in in_turn(*kinds)]
        z = self.projector(self.backbone.pool(torch.cat(in_turn(kinds[0])))).float().cpu()
        column, row = ((z[:, :2] + 4) * 8).long().clamp(0, 63).unbind(1)
        counts = torch.zeros(64, 64).index_put_((row, column), torch.ones(len(z)), accumulate=True)
        return {"views": rows_of(few, *shown), "cloud": 1 - (counts / counts.max()).expand(3, -1, -1)}


def epps_pulley(x: Tensor) -> Tensor:
    """(..., B, directions) -> (..., directions): how unlike the standard normal the B numbers of all ranks are, from 0.

    G times the integral over t of |mean of exp(i t x) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), for G numbers. Where they are
    normal, its expectation is (2 pi)^(1/2) (1 - 3^(-1/2)) = 1.06, whatever G is.
    """
    t = torch.linspace(0, FURTHEST, POINTS, dtype=x.dtype, device=x.device)
    normal = (-t.square() / 2).exp()
    weight = 2 * normal * (FURTHEST / (POINTS - 1))  # both halves are alike, by the rule of trapezia
    weight[[0, -1]] /= 2
    angle = x.unsqueeze(-1) * t  # (..., B, directions, POINTS)
    count = total(x.new_tensor(float(x.shape[-2])))
    real, imaginary = total(torch.stack([angle.cos().sum(-3), angle.sin().sum(-3)])) / count
    return count * ((real - normal).square() + imaginary.square()) @ weight

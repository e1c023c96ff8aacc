"""Two views of one picture should lie close together on a sphere, and all pictures together should spread evenly over it.

                +--> view 1 --> backbone --> pool --> projector --> z1 --+--> alignment: z1 near z2
    picture ----+                                                        |
                +--> view 2 --> backbone --> pool --> projector --> z2 --+--> uniformity: all pictures apart

Wang, Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere",
https://arxiv.org/abs/2005.10242

Differs: a projector with BatchNorm stands on the backbone, and views are weaker than for photographs, both for small pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.heads import projector
from zoo.losses import gather, normalized
from zoo.ranges import Count, Positive, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask, TaskOutput
from zoo.views import simclr_view


@register_task("align-uniform")
class AlignUniform(PretextTask):
    """Alignment of two views and uniformity of all pictures on the sphere.

    Args:
        uniformity: weight of the second term, above 0; alignment alone is best when all pictures are one point.
        sharpness: how much nearer points repel each other more, above 0; t of the paper.
        hidden: width of the projector's hidden layer.
        outputs: dimensions of the space that holds the sphere.
        smallest_crop: least share of the picture's area that a view shows, 0 to 1.
        flip: chance of a mirrored view.
    """

    def __init__(self, backbone: Backbone, uniformity: Positive = 1.0, sharpness: Positive = 2.0, hidden: Count = 512, outputs: Count = 128,
                 smallest_crop: Share = 0.3, flip: Share = 0.5):
        super().__init__(backbone)
        self.uniformity, self.sharpness, self.smallest_crop, self.flip = uniformity, sharpness, smallest_crop, flip
        self.projector = projector(backbone.num_features, hidden, outputs)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Two independent views, each (B, C, H, W)."""
        first, second = (simclr_view(batch["image"], self.backbone.size, (self.smallest_crop, 1.0), blur=0.0, flip=self.flip) for _ in range(2))
        return first, second

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        first, second = self.projector(self.backbone.pool(torch.cat(views))).chunk(2)
        with torch.autocast(first.device.type, enabled=False):
            first, second = normalized(first), normalized(second)
            align = (first - second).square().sum(1).mean()
            uniform = (self.spread(gather(first)) + self.spread(gather(second))) / 2       # of the pictures of all processes
        return TaskOutput(align + self.uniformity * uniform, {"alignment": align.detach(), "uniformity": uniform.detach()})

    def spread(self, x: Tensor) -> Tensor:
        """Points (B, D) on the sphere -> a scalar at most 0, lower the more evenly they spread: log of the mean Gaussian potential of pairs."""
        return (-self.sharpness * F.pdist(x).square()).logsumexp(0) - torch.tensor(len(x) * (len(x) - 1) / 2).log()

    @torch.no_grad()
    def picture(self, batch: dict) -> dict[str, Tensor]:
        """Each picture above its two views."""
        first, second = self.views({"image": batch["image"][:8]})
        return {"views": rows_of(batch["image"][:8], first, second)}

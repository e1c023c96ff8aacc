"""Sort one view of each picture into groups of equal size, and let the network tell the group from another view, or
from a small part.

    large and small views --> backbone --> pool --> projector --> cosines (2 + V, B, K) --+
                                                                  to K prototypes         |
    large views' cosines ..> Sinkhorn: groups of equal size (2, B, K) ...................>+
                                                                                          |
                       cross-entropy of each view with each other view's group <----------+

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments", https://arxiv.org/abs/2006.09882

Differs: no queue of earlier features, for a batch of small pictures has more of them than there are prototypes.
Differs: prototypes learn from the first step on, where the paper holds them still for an epoch.
Differs: the colour jitter is half as strong by default; on small and on grey pictures weaker views work better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.heads import Prototypes, mlp
from zoo.losses import sinkhorn, soft_cross_entropy
from zoo.ranges import Count, LargeCrop, Natural, Positive, Several, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import in_turn, multi_crop, to_float


@register_task("swav")
class SwAV(PretextTask):
    """Swapped prediction of soft assignments to learned prototypes, with views of the whole and of small parts.

    Args:
        prototypes: groups, fewer than pictures in a batch.
        temperature: softness of the prediction, above 0.
        epsilon: softness of the assignments, above 0; lower sorts harder.
        iterations: of Sinkhorn's algorithm, which makes the groups equal in size.
        small_count: views of small parts, beside the two of the whole; 0 is none.
        small_size: side of small views in pixels.
        hidden: width of the projector's hidden layer.
        outputs: width of the space in which prototypes lie.
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
        prototypes: Several = 64,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        iterations: Count = 3,
        small_count: Natural = 2,
        small_size: Count = 16,
        hidden: Count = 512,
        outputs: Count = 128,
        smallest_crop: LargeCrop = 0.25,
        jitter: Weight = 0.5,
        grayscale: Share = 0.2,
        blur: Share = 0.5,
        flip: Share = 0.5,
    ):
        super().__init__(backbone)
        if small_count:
            backbone.require_size(small_size, "task.small_size")
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.small_count, self.small_size = small_count, small_size
        self.smallest_crop, self.flip = smallest_crop, flip
        self.jitter, self.grayscale, self.blur = jitter, grayscale, blur
        self.projector = mlp(backbone.num_features, hidden, outputs)
        self.prototypes = Prototypes(outputs, prototypes)

    def views(self, batch: dict) -> tuple[Tensor, ...]:
        """Two views of the whole, (B, 2, C, H, W), and those of small parts, (B, small_count, C, small_size,
        small_size), if there are.
        """
        return multi_crop(
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

    def forward(self, views: tuple[Tensor, ...]) -> TaskOutput:
        z = self.projector(
            torch.cat([self.backbone.pool(torch.cat(in_turn(kind))) for kind in views])
        )  # (V B, D), view after view
        with torch.autocast(z.device.type, enabled=False):
            cosines = self.prototypes(z).unflatten(0, (2 + self.small_count, -1))  # (V, B, K)
            assigned = [sinkhorn(whole, self.epsilon, self.iterations) for whole in cosines[:2].detach()]  # (B, K) each
            loss = swapped(cosines, assigned, self.temperature)
        return TaskOutput(loss, {"certainty": torch.stack(assigned).amax(2).mean()})

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """The views of a few pictures; and in each row the pictures of the batch that lie nearest to one of the fullest
        prototypes.
        """
        few, image = batch["image"][:8], to_float(batch["image"])
        cosines = self.prototypes(self.projector(self.backbone.pool(image)))  # (B, K)
        fullest = cosines.argmax(1).bincount(minlength=cosines.shape[1]).topk(min(8, cosines.shape[1])).indices
        nearest = cosines[:, fullest].topk(min(8, len(image)), dim=0).indices  # (8, groups)
        return {
            "views": rows_of(few, *in_turn(*self.views({"image": few}))),
            "groups": rows_of(*[image[which] for which in nearest.T]),
        }


def swapped(cosines: Tensor, assigned: list[Tensor], temperature: float) -> Tensor:
    """Cosines of V views with prototypes, (V, B, K), and the assignments (B, K) of the first few views -> scalar: each
    of these is predicted from every other view (paper, equation 2).
    """
    losses = [
        soft_cross_entropy(view / temperature, target).mean()
        for source, target in enumerate(assigned)
        for place, view in enumerate(cosines)
        if place != source
    ]
    return torch.stack(losses).mean()

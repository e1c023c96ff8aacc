"""Two random views of one picture should look alike to the network, and unlike the views of every other picture.

              +--> view 1 --> backbone --> pool --> projector --> z1 --+
    image ----+                                                        +--> NT-Xent: z1, z2 alike,
              +--> view 2 --> backbone --> pool --> projector --> z2 --+    unlike all others

Chen, Kornblith, Norouzi, Hinton 2020, "A Simple Framework for Contrastive Learning of Visual Representations",
https://arxiv.org/abs/2002.05709

Differs: BatchNorm after the last linear layer of the projector, as in the authors' code but not in the paper's text.
Differs: the blur and the strength of the jitter are arguments; on drawings and on grey pictures weaker ones than the
paper's work better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.heads import projector
from zoo.losses import normalized, nt_xent
from zoo.ranges import Count, Positive, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import simclr_view, to_float


@register_task("simclr")
class SimCLR(PretextTask):
    """Contrastive learning of two views with NT-Xent over the global batch.

    Every other picture of the batch is a negative, on whichever process it lies, so more pictures a step make the task
    harder: 256 are enough for small sets, the paper has 4096. What is adapted later is the pooled features; the
    projector forgets what views differ in, and is left behind.

    Args:
        temperature: softness of the contrast, above 0; lower looks harder at the nearest negatives.
        hidden: width of the projector's hidden layer.
        outputs: width of the space in which views are compared.
        layers: linear layers of the projector.
        smallest_crop: least share of the picture's area that a view shows, 0 to 1.
        jitter: strength of the colour jitter; 1 is the paper's, 0 none.
        grayscale: chance of a view without colour.
        blur: chance of a blurred view.
        flip: chance of a mirrored view; 0 for writing and other things that have a side.
    """

    def __init__(
        self,
        backbone: Backbone,
        temperature: Positive = 0.2,
        hidden: Count = 512,
        outputs: Count = 128,
        layers: Count = 2,
        smallest_crop: Share = 0.2,
        jitter: Weight = 0.5,
        grayscale: Share = 0.2,
        blur: Share = 0.5,
        flip: Share = 0.5,
    ):
        super().__init__(backbone)
        self.temperature = temperature
        self.smallest_crop, self.flip = smallest_crop, flip
        self.jitter, self.grayscale, self.blur = jitter, grayscale, blur
        self.projector = projector(backbone.num_features, hidden, outputs, layers)

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
        """NT-Xent of the two views (B, C, H, W), in nats; log(2 B - 1) where all descriptions are the same, B of the
        global batch.

        Logs: `alignment`, the mean cosine of a picture's two descriptions, -1 to 1.
        """
        first, second = self.projector(self.backbone.pool(torch.cat(views))).chunk(2)
        loss = nt_xent(first, second, self.temperature)
        return TaskOutput(loss, {"alignment": torch.cosine_similarity(first, second).mean().detach()})

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """`views`: each of eight pictures above its two views. `nearest`: in each row a picture, and behind it those of
        the batch whose descriptions have the largest cosine with its own.
        """
        image = batch["image"]
        first, second = self.views({"image": image[:8]})
        z = normalized(self.projector(self.backbone.pool(to_float(image))))
        nearest = (z @ z.T).fill_diagonal_(torch.inf).topk(min(8, len(z))).indices  # (B, 8), itself first
        return {"views": rows_of(image[:8], first, second), "nearest": rows_of(*image[nearest[:8]])}

"""Pictures of one class should look alike to the network, and unlike those of every other class: SimCLR with labels.

              +--> view 1 --> backbone --> pool --> projector --> z1 --+
    image ----+                                                        +--> contrast: a class alike,
              +--> view 2 --> backbone --> pool --> projector --> z2 --+    unlike all others

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan 2020, "Supervised Contrastive Learning",
https://arxiv.org/abs/2004.11362

Differs: the loss is not multiplied by the temperature over a base temperature, as in the authors' code but not in the
paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.heads import projector
from zoo.losses import gather, normalized
from zoo.ranges import Count, Positive, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import simclr_view, to_float


@register_task("supcon")
class SupCon(PretextTask):
    """Contrastive learning of two views in which all views of a class attract each other. It uses labels: a mark to
    measure the others by.

    Args:
        temperature: softness of the contrast, above 0; lower looks harder at the nearest negatives.
        hidden: width of the projector's hidden layer.
        outputs: width of the space in which views are compared.
        smallest_crop: least share of the picture's area that a view shows, 0 to 1.
        jitter: strength of the colour jitter; 1 is SimCLR's, 0 none.
        grayscale: chance of a view without colour.
        blur: chance of a blurred view.
        flip: chance of a mirrored view; 0 for writing and other things that have a side.
    """

    needs = ("image", "label")

    def __init__(
        self,
        backbone: Backbone,
        temperature: Positive = 0.1,
        hidden: Count = 512,
        outputs: Count = 128,
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
        self.projector = projector(backbone.num_features, hidden, outputs)

    def views(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Two independent views, each (B, C, H, W), and the labels (B,)."""
        if int(batch["label"].min()) < 0:
            raise ZooError(
                f"the data have the label {int(batch['label'].min())}, which is no class; leave out what has none"
            )
        return self._view(batch["image"]), self._view(batch["image"]), batch["label"]

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

    def forward(self, views: tuple[Tensor, Tensor, Tensor]) -> TaskOutput:
        first, second, label = views
        first, second = self.projector(self.backbone.pool(torch.cat([first, second]))).chunk(2)
        loss = supervised_contrast(first, second, label, self.temperature)
        return TaskOutput(loss, {"alignment": torch.cosine_similarity(first, second).mean().detach()})

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures, and below each the other picture of the batch that lies nearest to it."""
        image = batch["image"]
        z = normalized(self.projector(self.backbone.pool(to_float(image))))
        near = (z @ z.T).fill_diagonal_(-torch.inf).argmax(1)
        return {"nearest": rows_of(image[:8], image[near[:8]])}


def supervised_contrast(first: Tensor, second: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Two views (B, D) and labels (B,) -> scalar: the loss L_out of the paper (equation 2) over the pictures of all
    ranks.

    Each view is an anchor; its positives are its partner and all views of pictures with its label; the logarithm is
    taken before the mean over them. With a label of its own for each picture this is SimCLR's loss.
    """
    with torch.autocast(first.device.type, enabled=False):
        z = torch.cat([gather(normalized(first)), gather(normalized(second))])  # (2G, D), G the global batch
        label = gather(label).repeat(2)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        log = (z @ z.T / temperature).masked_fill(itself, -torch.inf).log_softmax(1)  # (2G, 2G)
        positive = (label[:, None] == label[None]) & ~itself
        return -(torch.where(positive, log, 0.0).sum(1) / positive.sum(1)).mean()

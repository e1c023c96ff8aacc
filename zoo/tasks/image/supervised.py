"""Tell the network what each picture shows: no pretext at all, but the mark that representations learned without labels
are measured by.

    image --> view --> backbone --> pool --> linear head --> logits (B, K) --+--> cross-entropy
    label, a little of it spread over all classes ..........................>+

Krizhevsky, Sutskever, Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks",
https://doi.org/10.1145/3065386 Label smoothing: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2016, "Rethinking the
Inception Architecture for Computer Vision", https://arxiv.org/abs/1512.00567

Differs: a backbone of timm under a linear classifier, cropped and mirrored pictures and nothing else, so that the task
differs from its neighbours by its labels alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.losses import wide
from zoo.ranges import Fraction, Several, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop, to_float


@register_task("supervised")
class Supervised(PretextTask):
    """Classification with the labels of the data. It uses labels: the row of a table that the others are to come near.

    All that it has more than the others are labels: the same backbone, steps and pictures. It is no upper limit, as
    what is told apart here need not be what a later problem asks for.

    Args:
        classes: how many classes the data have, at least 2; their labels are 0 .. classes - 1.
        smoothing: share of a label that is spread evenly over all classes, 0 to below 1.
        smallest_crop: least share of the picture's area that is shown, 0 to 1; 1 is no cropping of square pictures.
        flip: chance of a mirrored picture; 0 for writing and other things that have a side.
    """

    needs = ("image", "label")

    def __init__(
        self,
        backbone: Backbone,
        classes: Several = 10,
        smoothing: Fraction = 0.1,
        smallest_crop: Share = 0.5,
        flip: Share = 0.5,
    ):
        super().__init__(backbone)
        self.classes, self.smoothing, self.smallest_crop, self.flip = classes, smoothing, smallest_crop, flip
        self.head = nn.Linear(backbone.num_features, classes)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """One view (B, C, H, W), and the labels (B,). Raises ZooError for a label that isn't one of the classes."""
        least, most = torch.stack(torch.aminmax(batch["label"])).tolist()
        if least < 0 or most >= self.classes:
            raise ZooError(
                f"the data have the label {least if least < 0 else most}, and task.classes is {self.classes}, which "
                "allows 0 to "
                f"{self.classes - 1}; "
                + ("leave out what has no class" if least < 0 else f"set task.classes to {most + 1} or more")
            )
        ratio = (1.0, 1.0) if self.smallest_crop == 1 else (3 / 4, 4 / 3)
        image = random_resized_crop(
            batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), ratio=ratio, flip=self.flip
        )
        return image, batch["label"]

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        """Cross-entropy of the smoothed labels, in nats; log(classes) where the network can't tell.

        Logs: `accuracy`, the share of pictures of the batch whose class was told, 0 to 1.
        """
        image, label = views
        logits = wide(self.head(self.backbone.pool(image)))  # (B, K)
        with torch.autocast(image.device.type, enabled=False):
            loss = F.cross_entropy(logits, label, label_smoothing=self.smoothing)
        return TaskOutput(loss, {"accuracy": (logits.argmax(1) == label).float().mean()})

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """A row of up to eight pictures for each class that the network believes to see, of at most ten classes; those
        first of which it is surest. Labels aren't asked for.
        """
        image = to_float(batch["image"])
        share, believed = self.head(self.backbone.pool(image)).softmax(1).max(1)
        order = share.argsort(descending=True)
        rows = [image[order[believed[order] == one][:8]] for one in believed.unique()[:10]]
        return {"classes": rows_of(*rows)}

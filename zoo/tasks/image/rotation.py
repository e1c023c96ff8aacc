"""Turn each picture by 0, 90, 180 and 270 degrees and let the network tell by how much: it has to know which way up
things are.

              +--> upright ---------+
    image ----+--> turned by 90 ----+--> backbone --> pool --> linear head --> which turn, one of 4:
              +--> turned by 180 ---+                                          cross-entropy
              +--> turned by 270 ---+

Gidaris, Singh, Komodakis 2018, "Unsupervised Representation Learning by Predicting Image Rotations",
https://arxiv.org/abs/1803.07728

Differs: pictures are cropped before they are turned, for small sets; smallest_crop=1 gives the paper's.
Differs: a linear classifier on the pooled features, for any backbone of timm, where the paper's is the last layer of
its own networks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.losses import wide
from zoo.ranges import Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop


@register_task("rotation")
class Rotation(PretextTask):
    """Classify which of four quarter turns a picture has been given, for any backbone and pictures of any kind that
    have an upright.

    A picture that has no upright teaches nothing: of textures, maps or cells the accuracy stays near 1/4. Where it
    comes near 1 within a few steps, something else than the things in the pictures gives the turn away, such as a
    watermark or the border of a scan. Quarter turns move whole pixels, so they leave no trace of their own.

    Args:
        smallest_crop: least share of the picture's area that is shown, 0 to 1; 1 is no cropping of square pictures.
        flip: chance of a mirrored picture, which is as upright as before; 0 for writing, where a mirrored letter can
            look like another one that is turned.
    """

    def __init__(self, backbone: Backbone, smallest_crop: Share = 0.5, flip: Share = 0.5):
        super().__init__(backbone)
        self.smallest_crop, self.flip = smallest_crop, flip
        self.head = nn.Linear(backbone.num_features, 4)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Every picture in all four positions (4 B, C, H, W), and its quarter turns against the clock, 0 to 3, (4 B,)
        int64.

        All four of one picture are in the batch, as in the paper, where drawing one of them learned less; a step costs
        as much as one of 4 B pictures. First come all that are upright, then all that are turned once, and so on.
        """
        ratio = (1.0, 1.0) if self.smallest_crop == 1 else (3 / 4, 4 / 3)
        image = random_resized_crop(
            batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), ratio=ratio, flip=self.flip
        )
        turned = torch.cat([image.rot90(turns, (2, 3)) for turns in range(4)])
        return turned, torch.arange(4, device=image.device).repeat_interleave(len(image))

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        """Mean cross-entropy of the four positions, in nats; log(4) = 1.39 where the network can't tell.

        Logs: `accuracy`, the share of turns that were told, 0 to 1; 1/4 by chance.
        """
        image, turns = views
        logits = wide(self.head(self.backbone.pool(image)))  # (4 B, 4)
        with torch.autocast(image.device.type, enabled=False):
            loss = F.cross_entropy(logits, turns)  # nats
        return TaskOutput(loss, {"accuracy": (logits.argmax(1) == turns).float().mean()})

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Of eight pictures, shown in turn upright and by one, two and three quarters: what the network sees, and that
        turned back by as much as it believes. What isn't upright in the lower row was told wrongly.
        """
        image, _ = self.views({"image": batch["image"][:8]})
        row = torch.arange(len(image) // 4, device=image.device)
        turned = image[row % 4 * len(row) + row]  # the first upright, the second by a quarter, ...
        believed = self.head(self.backbone.pool(turned)).argmax(1)
        righted = torch.stack([one.rot90(-int(turns), (1, 2)) for one, turns in zip(turned, believed, strict=True)])
        return {"righted": rows_of(turned, righted)}

"""Cut a block out of a picture and let the network paint it: what belongs there is known only to who understands the
rest.

    image with a hole --> backbone --> pool --> decoder --> painted (B, C, H, W) --+
                                                                                   |
    whole image ..................................................................>+
                                                                                   |
                                               squared error in the block <---------+

Pathak, Krahenbuhl, Donahue, Darrell, Efros 2016, "Context Encoders: Feature Learning by Inpainting",
https://arxiv.org/abs/1604.07379

Differs: the adversarial term is left out, as it was by the authors for the network whose features they measured.
Differs: the decoder paints from the pooled features, where the paper mixes the places of the last map by a fully
connected layer per channel.
Differs: at a random place there is one block, where the paper scatters several that overlap.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.heads import picture_decoder
from zoo.losses import wide
from zoo.ranges import Count, Natural, Range, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop


@register_task("inpaint")
class Inpaint(PretextTask):
    """Context encoder: squared error of what is painted into a hole, heavier along its edge.

    Args:
        region: where the hole is, in the middle of the picture or anywhere.
        share: side of the painted block as a share of the picture's, above 0 and at most 0.9.
        overlap: pixels along the block's edge that stay visible and have to be painted all the same, so that hole and
            picture join.
        overlap_weight: how much an error in them counts, where one in the hole counts 1; at least 0.
        decoder: how features become a picture; auto takes a transformer for a ViT and convolutions for everything else.
        width: channels of the last map of `conv`; half the width of `transformer`, where it is even.
        smallest_crop: least share of the picture's area that is shown, 0 to 1; 1 is no cropping of square pictures.
        flip: chance of a mirrored picture.
    """

    def __init__(
        self,
        backbone: Backbone,
        region: Literal["centre", "random"] = "random",
        share: Annotated[float, Range(above=0, most=0.9)] = 0.5,
        overlap: Natural = 1,
        overlap_weight: Weight = 10.0,
        decoder: Literal["auto", "conv", "transformer", "linear"] = "auto",
        width: Count = 16,
        smallest_crop: Share = 0.5,
        flip: Share = 0.5,
    ):
        super().__init__(backbone)
        self.block = round(share * backbone.size)
        if self.block <= 2 * overlap:
            raise ZooError(
                f"task.share {share} and task.overlap {overlap} leave a hole of {self.block - 2 * overlap} pixels in "
                "pictures of "
                f"{backbone.size}; it needs a pixel at least"
            )
        self.region, self.overlap, self.overlap_weight = region, overlap, overlap_weight
        self.smallest_crop, self.flip = smallest_crop, flip
        if decoder == "auto":
            decoder = "transformer" if backbone.sees_patches else "conv"
        self.decoder = picture_decoder(decoder, backbone.num_features, backbone.channels, backbone.size, width)

    def views(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """The whole picture (B, C, H, W), the hole (B, 1, H, W), True where pixels are hidden, and the weight of an
        error there (B, 1, H, W).
        """
        image = random_resized_crop(batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        room = self.backbone.size - self.block
        if self.region == "centre":
            corner = torch.full((2, len(image)), room // 2, device=image.device)
        else:
            corner = (torch.rand(2, len(image), device=image.device) * (room + 1)).long()
        hole = self._square(corner + self.overlap, self.block - 2 * self.overlap)
        weight = torch.where(hole, 1.0, self.overlap_weight) * self._square(corner, self.block)
        return image, hole, weight

    def _square(self, corner: Tensor, side: int) -> Tensor:
        """(B, 1, H, W), True within `side` pixels of the corners (2, B), row and column."""
        place = torch.arange(self.backbone.size, device=corner.device)
        within = (place >= corner.unsqueeze(2)) & (place < corner.unsqueeze(2) + side)  # (2, B, size)
        return (within[0, :, :, None] & within[1, :, None]).unsqueeze(1)

    def forward(self, views: tuple[Tensor, Tensor, Tensor]) -> TaskOutput:
        image, hole, weight = views
        painted = self.paint(self.cut(image, hole))
        with torch.autocast(image.device.type, enabled=False):
            error = (wide(painted) - image).square().mean(1, keepdim=True)  # (B, 1, H, W)
            loss = (weight * error).sum() / (len(image) * self.block**2)  # a mean over the block's pixels
            logs = {"hole_error": error[hole].mean().detach()}
        return TaskOutput(loss, logs)

    def cut(self, image: Tensor, hole: Tensor) -> Tensor:
        """The picture with the mean brightness that the backbone subtracts in the place of what is hidden."""
        return torch.where(hole, self.backbone.shift.mean(), image)

    def paint(self, seen: Tensor) -> Tensor:
        """(B, C, H, W) with a hole -> a whole picture (B, C, H, W); for grey pictures the mean of the decoder's
        channels.
        """
        painted = self.decoder(self.backbone.pool(seen))
        return painted.mean(1, keepdim=True) if seen.shape[1] == 1 else painted

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures, what the backbone sees of them, and the hole as it was painted."""
        image, hole, _ = self.views({"image": batch["image"][:8]})
        seen = self.cut(image, hole)
        painted = self.paint(seen).to(image.dtype).clamp(0, 1)
        return {"inpainting": rows_of(image, seen, torch.where(hole, painted, image))}

"""Cover patches of a picture with one learned stand-in and let the network guess their pixels, with no decoder but a
linear layer.

    image --> patches, some masked --> backbone --> linear head --> painted (B, N, p p C) --+
                                                                                            |
    image .................................................................................>+
                                                                                            |
                                           absolute error of hidden patches <---------------+

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu 2022, "SimMIM: A Simple Framework for Masked Image Modeling",
https://arxiv.org/abs/2111.09886

Differs: a mask covers single patches, as pictures of 28 to 64 pixels have few; the paper's covers squares of 32 pixels
out of 192.
Differs: the target's values go from 0 to 1 and aren't normalised, so that the error is one of brightness; that changes
its unit alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.losses import wide
from zoo.masks import hidden_count, mask_pixels, patchify, random_mask, unpatchify
from zoo.ranges import Part, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop


@register_task("simmim")
class SimMIM(PretextTask):
    """Masked image modelling of raw pixels: the backbone sees all places, hidden ones as a mask token.

    Simpler than a masked autoencoder, as there is no decoder, and dearer, as the backbone computes all tokens. The
    backbone has to be a plain ViT or Eva of timm that doesn't pool by attention. Raises ZooError for any other.

    Args:
        mask_ratio: share of patches that are hidden, above 0 and below 1; at least one patch stays visible.
        smallest_crop: least share of the picture's area that is shown, 0 to 1; 1 is no cropping of square pictures.
        flip: chance of a mirrored picture.
    """

    def __init__(self, backbone: Backbone, mask_ratio: Part = 0.6, smallest_crop: Share = 0.67, flip: Share = 0.5):
        backbone.require_patches("simmim")
        backbone.require_plain_pooling("simmim")
        super().__init__(backbone)
        self.patch, self.tokens = backbone.patch_size, backbone.num_patches
        self.hidden = hidden_count(mask_ratio, self.tokens)
        self.smallest_crop, self.flip = smallest_crop, flip
        self.mask_token = nn.Parameter(torch.zeros(backbone.num_features))
        self.head = nn.Linear(backbone.num_features, self.patch**2 * backbone.channels)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """The picture (B, C, H, W), grey ones as the backbone sees them, and the mask (B, N), True where a patch is
        hidden: as many in each picture, at places of its own.
        """
        image = random_resized_crop(batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        return self.backbone.repeated(image), random_mask(len(image), self.tokens, self.hidden, image.device)

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        """Mean absolute error of the hidden patches' values, in brightness from 0 to 1; what is visible costs
        nothing.
        """
        image, mask = views
        painted = self.paint(image, mask)
        with torch.autocast(image.device.type, enabled=False):
            error = (wide(painted) - patchify(image, self.patch)).abs().mean(-1)  # (B, N)
            loss = (error * mask).sum() / mask.sum()  # on hidden patches only
        return TaskOutput(loss)

    def paint(self, image: Tensor, mask: Tensor) -> Tensor:
        """Patches (B, N, patch * patch * C) of all places: guessed where `mask` (B, N) hides them, elsewhere the head's
        of what was seen, of which nothing is asked.
        """
        tokens = self.backbone.tokens(image, mask=mask, mask_token=self.mask_token)
        return self.head(tokens[:, self.backbone.num_prefix_tokens :])

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Eight pictures, what the backbone sees of them (grey for the mask token), and what it paints where they were
        hidden, side by side with what it saw.
        """
        image, mask = self.views({"image": batch["image"][:8]})
        painted, hidden = unpatchify(self.paint(image, mask).float(), self.patch), mask_pixels(mask, self.patch)
        return {
            "reconstruction": rows_of(
                image, image.masked_fill(hidden, 0.5), torch.where(hidden, painted, image).clamp(0, 1)
            )
        }

"""Hide three quarters of a picture's patches and let the network paint them from the rest.

    visible patches --> backbone --> with mask tokens --> decoder --> painted (B, N, p p C) --+
                                                                                              |
    all patches, each with mean 0 and deviation 1 ...........................................>+
                                                                                              |
                                             squared error of hidden patches <----------------+

He, Chen, Xie, Li, Dollar, Girshick 2022, "Masked Autoencoders Are Scalable Vision Learners",
https://arxiv.org/abs/2111.06377

Differs: the backbone is used without a class token and with average pooling, as its recipes say, so that every
parameter learns.
Differs: the backbone's positions are timm's, which a ViT learns, where the authors' are fixed sines; the decoder's are
fixed.
Differs: the default decoder is one block deep, light enough for pictures of 28 to 64 pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.heads import TransformerDecoder, check_heads
from zoo.masks import hidden_count, patchify, random_keep, unpatchify
from zoo.ranges import Count, Part, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop


@register_task("mae")
class MAE(PretextTask):
    """Masked autoencoder: the backbone sees only the visible patches, a light decoder paints the hidden ones.

    Args:
        mask_ratio: share of patches that are hidden, above 0 and below 1; at least one patch stays visible.
        decoder_dim: width of the decoder, a multiple of 4 and of its heads.
        decoder_depth: transformer blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        normalize_target: predict each patch with its own mean and deviation removed, which the paper found better.
        smallest_crop: least share of the picture's area that is shown, 0 to 1; 1 is no cropping of square pictures.
        flip: chance of a mirrored picture.
    """

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: Part = 0.75,
        decoder_dim: Count = 64,
        decoder_depth: Count = 1,
        decoder_heads: Count = 4,
        normalize_target: bool = True,
        smallest_crop: Share = 0.5,
        flip: Share = 0.5,
    ):
        backbone.require_patches("mae")
        backbone.require_plain_pooling("mae")
        super().__init__(backbone)
        check_heads("task.decoder_dim", decoder_dim, "task.decoder_heads", decoder_heads)
        self.patch, self.side = backbone.patch_size, backbone.size // backbone.patch_size
        self.keep = self.side**2 - hidden_count(mask_ratio, self.side**2)
        self.normalize_target, self.smallest_crop, self.flip = normalize_target, smallest_crop, flip
        self.embed = nn.Linear(backbone.num_features, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder = TransformerDecoder(
            decoder_dim, self.side, self.patch**2 * backbone.channels, decoder_depth, decoder_heads
        )
        nn.init.normal_(self.mask_token, std=0.02)

    def views(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """The picture (B, C, H, W), the patches to keep (B, n) and the mask (B, N), True where a patch is hidden."""
        image = random_resized_crop(batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        image = self.backbone.repeated(image)
        keep, mask = random_keep(len(image), self.side**2, self.keep, image.device)
        return image, keep, mask

    def forward(self, views: tuple[Tensor, Tensor, Tensor]) -> TaskOutput:
        image, keep, mask = views
        painted = self.paint(image, keep)  # (B, N, patch * patch * C)
        with torch.autocast(image.device.type, enabled=False):
            error = (painted.to(image.dtype) - self.target(image)).square().mean(-1)  # (B, N)
            loss = (error * mask).sum() / mask.sum()  # on hidden patches only
        return TaskOutput(loss)

    def paint(self, image: Tensor, keep: Tensor) -> Tensor:
        """The decoder's patches (B, N, patch * patch * C) from the visible ones alone."""
        visible = self.embed(self.backbone.tokens(image, keep)[:, self.backbone.num_prefix_tokens :])
        everywhere = self.mask_token.to(visible.dtype).expand(len(image), self.side**2, -1)
        index = keep.unsqueeze(-1).expand_as(visible)
        return self.decoder(everywhere.scatter(1, index, visible))

    def target(self, image: Tensor) -> Tensor:
        """Patches (B, N, patch * patch * C), each with mean 0 and deviation 1 if `normalize_target`."""
        patches = patchify(image, self.patch)
        if not self.normalize_target:
            return patches
        return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures, what the backbone sees of them, and what the decoder paints around it."""
        image, keep, mask = self.views({"image": batch["image"][:8]})
        patches, painted = patchify(image, self.patch), self.paint(image, keep).to(image.dtype)
        if self.normalize_target:  # undo it with the true statistics: they were never predicted
            painted = painted * (patches.var(-1, keepdim=True) + 1e-6).sqrt() + patches.mean(-1, keepdim=True)
        hidden = mask.unsqueeze(-1)
        seen = unpatchify(torch.where(hidden, torch.full_like(patches, 0.5), patches), self.patch)
        filled = unpatchify(torch.where(hidden, painted, patches), self.patch).clamp(0, 1)
        return {"reconstruction": rows_of(image, seen, filled)}

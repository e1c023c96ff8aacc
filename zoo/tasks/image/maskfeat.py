"""Cover a block of a picture and let the network guess its edges, how strong and in which direction, instead of its
pixels.

    image --> patches, a block masked --> backbone --> head --> guess (B, N, cells cells bins C) --+
                                                                                                   |
    image ..> gradients ..> histograms of their directions, of each cell .........................>+
                                                                                                   |
                                             squared error of hidden patches <---------------------+

Wei, Fan, Xie, Wu, Yuille, Feichtenhofer 2022, "Masked Feature Prediction for Self-Supervised Visual Pre-Training",
https://arxiv.org/abs/2112.09133; the targets: Dalal, Triggs 2005, "Histograms of Oriented Gradients for Human
Detection", https://doi.org/10.1109/CVPR.2005.177

Differs: a patch has cells * cells cells, whatever size that makes them, where the paper's are of 8 pixels, four in a
patch of 16. Where they don't divide its pixels, neighbouring cells of a patch share a row or a column of them.
Differs: gradients are the plain differences of Dalal and Triggs, zero at the border, as scikit-image has them; the
authors' code smooths them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.losses import wide
from zoo.masks import block_mask, hidden_count, mask_pixels
from zoo.ranges import Count, Part, Several, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop, resize

STROKE = 8  # pixels to a side of a cell that is drawn


@register_task("maskfeat")
class MaskFeat(PretextTask):
    """Prediction of histograms of oriented gradients (HOG) at hidden patches; the backbone sees those as a mask token.

    Args:
        mask_ratio: share of patches that are hidden, as one block, above 0 and below 1; at least one patch stays
            visible.
        bins: directions of edges that are told apart, from 0 to 180 degrees; at least 2.
        cells: histograms to a side of a patch, at most as many as it has pixels there.
        smallest_crop: least share of the picture's area that is shown, 0 to 1; 1 is no cropping of square pictures.
        flip: chance of a mirrored picture.
    """

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: Part = 0.4,
        bins: Several = 9,
        cells: Count = 1,
        smallest_crop: Share = 0.5,
        flip: Share = 0.5,
    ):
        backbone.require_patches("maskfeat")
        backbone.require_plain_pooling("maskfeat")
        super().__init__(backbone)
        if cells > backbone.patch_size:
            raise ZooError(
                f"task.cells is {cells}, and a patch has {backbone.patch_size} pixels to a side; set it to so many or "
                "less"
            )
        self.bins, self.cells, self.side = bins, cells, backbone.size // backbone.patch_size
        self.hidden = hidden_count(mask_ratio, self.side**2)
        self.smallest_crop, self.flip = smallest_crop, flip
        self.mask_token = nn.Parameter(torch.zeros(backbone.num_features))
        self.head = nn.Linear(backbone.num_features, cells**2 * bins * backbone.channels)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def views(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """The picture (B, C, H, W), the mask (B, N), True where a patch is hidden, and the HOG of all patches (B, N,
        cells * cells * bins * C).
        """
        image = random_resized_crop(batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        image = self.backbone.repeated(image)
        return image, block_mask(len(image), self.side, self.hidden, image.device), self.target(image)

    def target(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, cells * cells * bins * C): the histograms of each patch's cells."""
        found = hog(image, self.side * self.cells, self.bins)  # (B, C, bins, rows, columns)
        found = found.unflatten(4, (-1, self.cells)).unflatten(
            3, (-1, self.cells)
        )  # (B, C, bins, side, cells, side, cells)
        return found.permute(0, 3, 5, 4, 6, 2, 1).flatten(3).flatten(1, 2)

    def forward(self, views: tuple[Tensor, Tensor, Tensor]) -> TaskOutput:
        image, mask, target = views
        guessed = self.guess(image, mask)
        with torch.autocast(image.device.type, enabled=False):
            error = (wide(guessed) - target).square().mean(-1)  # (B, N)
            loss = (error * mask).sum() / mask.sum()  # on hidden patches only
        return TaskOutput(loss)

    def guess(self, image: Tensor, mask: Tensor) -> Tensor:
        """Histograms (B, N, cells * cells * bins * C), guessed where `mask` hides a patch."""
        tokens = self.backbone.tokens(image, mask=mask, mask_token=self.mask_token)
        return self.head(tokens[:, self.backbone.num_prefix_tokens :])

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures, what the backbone sees of them, and the edges that it guesses and the true ones, as strokes in
        every cell.
        """
        image, mask, target = self.views({"image": batch["image"][:8]})
        guessed = torch.where(mask.unsqueeze(-1), self.guess(image, mask).float(), target)
        seen = image.masked_fill(mask_pixels(mask, self.backbone.patch_size), 0.5)
        drawn = [resize(self.strokes(patches), self.backbone.size) for patches in (guessed, target)]
        return {"edges": rows_of(image, seen, *drawn)}

    def strokes(self, patches: Tensor) -> Tensor:
        """(B, N, cells * cells * bins * C) -> (B, 1, h, w) in [0, 1]: in each cell, of STROKE pixels, a line along
        every edge, as bright as it is strong.
        """
        parts = (
            patches.unflatten(2, (self.cells, self.cells, self.bins, -1)).mean(-1).unflatten(1, (self.side, self.side))
        )
        cells = parts.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3).clamp(min=0)  # (B, bins, rows, columns)
        place = torch.arange(STROKE, device=patches.device) - (STROKE - 1) / 2
        angle = (torch.arange(self.bins, device=patches.device) + 0.5) * math.pi / self.bins
        # the gradient points across the edge: a stroke is where its component along the gradient is small
        across = place[None, :, None] * angle.sin()[:, None, None] + place[None, None] * angle.cos()[:, None, None]
        line = (1 - across.abs()).clamp(min=0)  # (bins, STROKE, STROKE)
        drawn = torch.einsum("bnrc,nij->bricj", cells, line)
        return drawn.flatten(3).flatten(1, 2).unsqueeze(1).clamp(0, 1)


def hog(image: Tensor, rows: int, bins: int) -> Tensor:
    """Histograms of oriented gradients: (B, C, H, W) -> (B, C, bins, rows, rows), one for each of rows * rows cells.

    Each pixel votes for the direction of its gradient, 0 to 180 degrees, by its length; each channel has its own
    histogram. A cell's histogram is a mean over its pixels, then scaled to length 1 (flat cells stay near 0). Where
    `rows` divides H and W this is `skimage.feature.hog` of each channel with blocks of one cell and block_norm "L2";
    elsewhere cells reach over the pixels that their edges cut.
    """
    down, across = torch.zeros_like(image), torch.zeros_like(image)
    down[..., 1:-1, :] = image[..., 2:, :] - image[..., :-2, :]
    across[..., 1:-1] = image[..., 2:] - image[..., :-2]
    which = (torch.atan2(down, across).remainder(math.pi) * (bins / math.pi)).floor().long().remainder(bins)
    votes = image.new_zeros(*image.shape[:2], bins, *image.shape[2:]).scatter_(
        2, which.unsqueeze(2), torch.hypot(down, across).unsqueeze(2)
    )
    cells = nn.functional.adaptive_avg_pool2d(votes.flatten(0, 1), rows).unflatten(0, image.shape[:2])
    return cells / (cells.square().sum(2, keepdim=True) + 1e-10).sqrt()

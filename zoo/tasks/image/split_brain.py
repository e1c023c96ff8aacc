"""Show the network a picture's brightness and let it guess the colours, and its colours and let it guess the
brightness.

              +--> grey image -----> backbone --> map --> head --> guessed colour (B, Q, h, w)
    image ----+                                                    --> cross-entropy with colour
              +--> colours alone --> backbone --> map --> head --> guessed lightness (B, L, h, w)
                                                                   --> cross-entropy with lightness

Zhang, Isola, Efros 2017, "Split-Brain Autoencoders: Unsupervised Learning by Cross-Channel Prediction",
https://arxiv.org/abs/1611.09842

Differs: one network reads both parts in turn, so that a checkpoint is one ordinary backbone. The paper cuts the network
into two disjoint halves; it calls what is done here an alternative, a network trained on both predictions at once, and
found the halves better.
Differs: the network is given colours as a picture of them at one lightness, and lightness as a grey picture; the paper
feeds L and ab themselves.
Differs: the bins of colour are those that the sRGB cube reaches, as in the task colorize.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.backbones import Backbone
from zoo.colour import colour_bins, lab_to_rgb, rgb_to_lab
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.heads import map_head
from zoo.losses import log_likelihood
from zoo.ranges import BinWidth, Count, Several, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop, resize

MIDDLE = 55.0  # the lightness, 0 to 100, at which sRGB shows most colours


@register_task("split-brain")
class SplitBrain(PretextTask):
    """Classification of colour from lightness and of lightness from colour, at every place, with one head each.

    Args:
        resolution: side of the predicted maps in pixels.
        width: channels of the heads' hidden maps.
        step: width of a bin of colour, in units of ab, 1 to 100.
        levels: bins of lightness, at least 2.
        smallest_crop: least share of the picture's area that is shown, 0 to 1.
        flip: chance of a mirrored picture.
    """

    needs_colour = True

    def __init__(
        self,
        backbone: Backbone,
        resolution: Count = 16,
        width: Count = 64,
        step: BinWidth = 10,
        levels: Several = 50,
        smallest_crop: Share = 0.3,
        flip: Share = 0.5,
    ):
        backbone.require_plain_pooling("split-brain")
        super().__init__(backbone)
        self.resolution, self.levels, self.smallest_crop, self.flip = resolution, levels, smallest_crop, flip
        self.register_buffer("bins", colour_bins(step), persistent=False)  # (Q, 2)
        self.to_colour = map_head(backbone.map_features, width, len(self.bins), resolution)
        self.to_lightness = map_head(backbone.map_features, width, levels, resolution)

    def views(self, batch: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The grey picture (B, 3, H, W) and the picture of colours alone (B, 3, H, W), both in [0, 1]; the bins of
        colour and the levels of lightness, (B, h, w) int64 each, at the heads' resolution."""
        if batch["image"].shape[1] != 3:
            raise ZooError("the task split-brain needs colour pictures, and these are grey")
        lab = rgb_to_lab(
            random_resized_crop(batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        )
        small = resize(lab, self.resolution)
        return self.grey(lab), self.colours(lab), self.nearest(small[:, 1:]), self.level(small[:, 0])

    def grey(self, lab: Tensor) -> Tensor:
        """Lab (B, 3, H, W) -> (B, 3, H, W) in [0, 1] that shows the lightness alone."""
        return (lab[:, :1] / 100).expand(-1, 3, -1, -1)

    def colours(self, lab: Tensor) -> Tensor:
        """Lab (B, 3, H, W) -> (B, 3, H, W) in [0, 1] that shows the colours alone, all as light as each other."""
        return lab_to_rgb(torch.cat([torch.full_like(lab[:, :1], MIDDLE), lab[:, 1:]], 1))

    def nearest(self, ab: Tensor) -> Tensor:
        """(B, 2, h, w) -> the bin nearest to each place (B, h, w), 0 to Q - 1."""
        return (
            torch.cdist(ab.movedim(1, -1).flatten(1, 2), self.bins.to(ab.dtype)).argmin(-1).unflatten(1, ab.shape[2:])
        )

    def level(self, lightness: Tensor) -> Tensor:
        """Lightness (B, h, w), 0 to 100 -> its level (B, h, w), 0 to `levels` - 1."""
        return (lightness / 100 * self.levels).long().clamp(0, self.levels - 1)

    def forward(self, views: tuple[Tensor, Tensor, Tensor, Tensor]) -> TaskOutput:
        grey, colours, bin_of, level_of = views
        guessed_colour, guessed_lightness = self.guess(grey, colours)
        with torch.autocast(grey.device.type, enabled=False):
            colour = -log_likelihood(guessed_colour, bin_of.unsqueeze(-1)).mean()
            lightness = -log_likelihood(guessed_lightness, level_of.unsqueeze(-1)).mean()
        return TaskOutput(colour + lightness, {"colour": colour.detach(), "lightness": lightness.detach()})

    def guess(self, grey: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the bins of colour (B, Q, h, w) from the grey picture, and of the levels (B, levels, h, w) from
        that of colours.
        """
        first, second = self.backbone.map(torch.cat([grey, colours])).chunk(2)
        return self.to_colour(first), self.to_lightness(second)

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """`backbone` reads the picture as it is; `parts` are what it makes of the grey picture and of the colours, side
        by side (B, 2 D).
        """
        pooled = {"backbone": self.backbone.pool(image)}
        if image.shape[1] == 3:
            lab = rgb_to_lab(image)
            pooled["parts"] = torch.cat([self.backbone.pool(self.grey(lab)), self.backbone.pool(self.colours(lab))], 1)
        return pooled

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """The grey pictures, coloured as guessed from them; the pictures of colours, and the lightness guessed from
        those; the true pictures.
        """
        lab = rgb_to_lab(batch["image"][:8])
        grey, colours = self.grey(lab), self.colours(lab)
        by_bin, by_level = (scores.float().softmax(1) for scores in self.guess(grey, colours))
        ab = resize(torch.einsum("bqhw,qc->bchw", by_bin, self.bins), lab.shape[-1])
        middle = (torch.arange(self.levels, device=lab.device) + 0.5) / self.levels
        lightness = resize(torch.einsum("blhw,l->bhw", by_level, middle).unsqueeze(1), lab.shape[-1])
        return {
            "halves": rows_of(grey, lab_to_rgb(torch.cat([lab[:, :1], ab], 1)), colours, lightness, batch["image"][:8])
        }

"""Show the network a grey picture and let it guess the colours: to know that leaves are green, it has to know a leaf.

              +--> lightness (B, 1, H, W) --> backbone --> map --> head --> colours (B, Q, h, w) --+
    image ----+                                                                                    |
              +..> ab (B, 2, h, w) ..> shares of the five nearest of Q colours ...................>+
                                                                                                   |
                                                   cross-entropy, rare colours weigh more <--------+

Zhang, Isola, Efros 2016, "Colorful Image Colorization", https://arxiv.org/abs/1603.08511

Differs: the bins are those that the sRGB cube really reaches, computed here, where the paper reads a list of 313 from a
file.
Differs: how often each colour occurs is counted while training instead of beforehand, so the task needs no look at the
data.
Differs: the filters that see the picture first start equal for red, green and blue, so that the backbone reads the same
from a colour picture as from its grey.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from zoo.backbones import Backbone
from zoo.colour import colour_bins, lab_to_rgb, rgb_to_lab
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.heads import map_head
from zoo.losses import log_likelihood, total
from zoo.ranges import BinWidth, Count, Positive, Range, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop, resize

NEIGHBOURS, SOFTNESS = 5, 5.0  # soft encoding: the paper's 5 nearest bins and sigma of 5 units of ab


@register_task("colorize")
class Colorize(PretextTask):
    """Predict a distribution over colours for every place of a grey picture.

    Args:
        loss: classification over the bins of ab, or regression of ab itself, which the paper compares with and finds
            drab.
        resolution: side of the predicted colour map in pixels.
        width: channels of the head's hidden maps.
        step: width of a bin in units of ab, 1 to 100.
        rebalance: share of the uniform distribution mixed into the frequency of colours before rare ones are weighted
            up, above 0; 0.5 is the paper's, 1 weighs all colours alike.
        temperature: of the annealed mean, above 0; towards 0 it takes the likeliest colour, 1 takes the mean.
        smallest_crop: least share of the picture's area that is shown, 0 to 1.
        flip: chance of a mirrored picture.
    """

    needs_colour = True

    def __init__(
        self,
        backbone: Backbone,
        loss: Literal["classification", "regression"] = "classification",
        resolution: Count = 16,
        width: Count = 64,
        step: BinWidth = 10,
        rebalance: Annotated[float, Range(above=0, most=1)] = 0.5,
        temperature: Positive = 0.38,
        smallest_crop: Share = 0.3,
        flip: Share = 0.5,
    ):
        backbone.require_plain_pooling("colorize")
        super().__init__(backbone)
        self.loss, self.resolution, self.rebalance, self.temperature = loss, resolution, rebalance, temperature
        self.smallest_crop, self.flip = smallest_crop, flip
        self.register_buffer("bins", colour_bins(step), persistent=False)  # (Q, 2)
        self.register_buffer("seen", torch.zeros(len(self.bins)))  # weight of each bin so far
        outputs = len(self.bins) if loss == "classification" else 2
        self.head = map_head(backbone.map_features, width, outputs, resolution)
        first = next(p for p in backbone.model.parameters() if p.ndim == 4)  # the stem, or the patch embedding
        with torch.no_grad():
            first.copy_(first.mean(1, keepdim=True).expand_as(first))

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Lightness (B, 1, H, W) in [0, 1] and true colour ab (B, 2, h, w) at the head's resolution."""
        if batch["image"].shape[1] != 3:
            raise ZooError("the task colorize needs colour pictures, and these are grey")
        image = random_resized_crop(batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        lab = rgb_to_lab(image)
        return lab[:, :1] / 100, resize(lab[:, 1:], self.resolution)

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        lightness, ab = views
        if self.loss == "classification":
            nearest, share = self.encode(ab)  # (B, h, w, 5) each, before the network fills memory
        predicted = self.head(self.backbone.map(lightness))  # (B, Q or 2, h, w)
        with torch.autocast(ab.device.type, enabled=False):
            if self.loss == "regression":
                predicted = predicted.to(ab.dtype)
                error = (predicted - ab / 100).square().sum(1).mean()
                return TaskOutput(error, {"ab_error": (predicted.detach() * 100 - ab).norm(dim=1).mean()})
            cross_entropy = -(share * log_likelihood(predicted, nearest)).sum(-1)  # (B, h, w)
            loss = (self.weights()[nearest[..., 0]] * cross_entropy).mean()  # nearest bin first
            if self.training:
                self._count(nearest, share)
        return TaskOutput(loss, {"cross_entropy": cross_entropy.mean().detach()})

    def encode(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2, h, w) -> the bins nearest to each place (B, h, w, 5), nearest first, and the Gaussian share of each
        (B, h, w, 5), summing to 1.
        """
        distance = torch.cdist(ab.movedim(1, -1).flatten(1, 2), self.bins).unflatten(1, ab.shape[2:])
        distance, nearest = distance.topk(NEIGHBOURS, largest=False)
        return nearest, (-distance.square() / (2 * SOFTNESS**2)).softmax(-1)

    def weights(self) -> Tensor:
        """(Q,): how much each colour counts, rare ones more; its mean over the colours as they occur is 1."""
        occurs = (self.seen + 1) / (self.seen + 1).sum()
        kernel = (-torch.cdist(self.bins, self.bins).square() / (2 * SOFTNESS**2)).exp()
        smooth = (kernel / kernel.sum(0, keepdim=True)) @ occurs
        weight = 1 / ((1 - self.rebalance) * smooth + self.rebalance / len(self.bins))
        return weight / (occurs * weight).sum()

    @torch.no_grad()
    def _count(self, nearest: Tensor, share: Tensor) -> None:
        self.seen += total(
            torch.zeros_like(self.seen).index_add_(0, nearest.flatten(), share.flatten().to(self.seen.dtype))
        )

    def decode(self, predicted: Tensor) -> Tensor:
        """(B, Q or 2, h, w) -> ab (B, 2, h, w), by the annealed mean: sharper than the mean, smoother than the mode."""
        if self.loss == "regression":
            return predicted * 100
        return torch.einsum("bqhw,qc->bchw", (predicted / self.temperature).softmax(1), self.bins)

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """`backbone` reads the picture as it is, `grey` its lightness alone, which is all that the task showed it."""
        pooled = {"backbone": self.backbone.pool(image)}
        if image.shape[1] == 3:
            pooled["grey"] = self.backbone.pool(rgb_to_lab(image)[:, :1] / 100)
        return pooled

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """What the network saw, the colours it guessed, and the true ones."""
        lab = rgb_to_lab(batch["image"][:8])
        lightness = lab[:, :1] / 100
        guessed = resize(self.decode(self.head(self.backbone.map(lightness)).to(lab.dtype)), lab.shape[-1])
        return {
            "colours": rows_of(
                lightness, lab_to_rgb(torch.cat([lab[:, :1], guessed], 1)).clamp(0, 1), batch["image"][:8]
            )
        }

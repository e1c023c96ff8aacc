"""Describe a picture by a small cloud of codes instead of one, and make all clouds together look like one that can be
drawn from.

    image --> backbone --> pool --> mean, log variance (B, M) --> code, sampled with noise
                                      |                             |
                                      |                             +--> decoder --> log likelihood
                                      |                                              of the image
                                      +--> KL from the standard normal, times beta

Kingma, Welling 2013, "Auto-Encoding Variational Bayes", https://arxiv.org/abs/1312.6114
Beta: Higgins et al. 2017, "beta-VAE", https://openreview.net/forum?id=Sy2fzU9gl
Free bits: Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow",
https://arxiv.org/abs/1606.04934 Learned deviation: Rybkin, Daniilidis, Levine 2021, "Simple and Effective VAE Training
with Calibrated Decoders", https://arxiv.org/abs/2006.13202

Differs: the loss is in nats per value of the picture, so that learning rates carry over between sizes; the logs are in
nats per picture.
Differs: the Gaussian has one deviation for all pixels, learned with the weights, where the paper predicts one for each
pixel.
Differs: the Bernoulli is for grey values too: it is the mean over all ways to make them black or white with their value
as the chance.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.heads import picture_decoder
from zoo.losses import total, wide
from zoo.ranges import Count, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop, to_float

ACTIVE = 0.1  # nats from which a dimension is said to tell something


@register_task("vae")
class VAE(PretextTask):
    """Variational autoencoder: reconstruct from a sampled code, and keep what the code tells of the picture small.

    Args:
        code: latent dimensions, M; fewer than a picture has values.
        likelihood: of the pixels given the code: gaussian around what is painted, or bernoulli, for black and white.
        beta: weight of the divergence from the prior; 1 is the evidence lower bound, more makes the dimensions
            untangle.
        free_bits: nats that each dimension may tell on average without paying for them; keeps dimensions from falling
            silent.
        decoder: how a code becomes a picture; auto takes a transformer for a ViT and convolutions for everything else.
        width: channels of the last map of `conv`; half the width of `transformer`.
        smallest_crop: least share of the picture's area that is shown, 0 to 1; 1 is no cropping of square pictures.
        flip: chance of a mirrored picture.
    """

    def __init__(
        self,
        backbone: Backbone,
        code: Count = 32,
        likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
        beta: Weight = 1.0,
        free_bits: Weight = 0.0,
        decoder: Literal["auto", "conv", "transformer", "linear"] = "auto",
        width: Count = 32,
        smallest_crop: Share = 1.0,
        flip: Share = 0.0,
    ):
        super().__init__(backbone)
        values = backbone.channels * backbone.size**2
        if code >= values:
            raise ZooError(f"task.code is {code}, and a picture has {values} values; a bottleneck has fewer")
        self.code, self.likelihood, self.beta, self.free_bits = code, likelihood, beta, free_bits
        self.smallest_crop, self.flip = smallest_crop, flip
        if decoder == "auto":
            decoder = "transformer" if backbone.sees_patches else "conv"
        self.posterior = nn.Linear(backbone.num_features, 2 * code)  # means, then log variances
        self.decoder = picture_decoder(decoder, code, backbone.channels, backbone.size, width)
        if likelihood == "gaussian":
            self.log_sigma = nn.Parameter(torch.tensor(-1.0))

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """The picture (B, C, H, W) and the standard normal noise (B, M) with which its code will be sampled."""
        ratio = (1.0, 1.0) if self.smallest_crop == 1 else (3 / 4, 4 / 3)
        image = random_resized_crop(
            batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), ratio=ratio, flip=self.flip
        )
        if self.code >= image[0].numel():  # grey pictures, when the backbone was made for colour
            raise ZooError(
                f"task.code is {self.code}, and a grey picture has {image[0].numel()} values; a bottleneck has fewer"
            )
        return image, torch.randn(len(image), self.code, dtype=image.dtype, device=image.device)

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        image, noise = views
        mean, log_variance = self.encode(image)
        z = mean + (0.5 * log_variance).exp() * noise
        painted = self.decode(z, image.shape[1])
        with torch.autocast(image.device.type, enabled=False):
            told = self.log_likelihood(image, painted).mean()  # nats per picture
            kl = kl_from_prior(mean, log_variance)  # (B, M)
            each = total(kl.sum(0)) / total(kl.new_tensor(len(kl)))  # (M,), over the global batch
            loss = (self.beta * each.clamp(min=self.free_bits).sum() - told) / image[0].numel()
        rate = each.sum().detach()
        return TaskOutput(
            loss,
            {
                "elbo": told.detach() - rate,
                "log_likelihood": told.detach(),
                "kl": rate,
                "active": (each > ACTIVE).sum().to(loss.dtype),
            },
        )

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> mean and log variance of the code, both (B, M); in full precision, for they get
        exponentiated.
        """
        pooled = self.backbone.pool(image)
        with torch.autocast(image.device.type, enabled=False):
            return self.posterior(wide(pooled)).chunk(2, dim=1)

    def decode(self, z: Tensor, channels: int) -> Tensor:
        """(B, M) -> (B, channels, H, W): means of the Gaussian, or logits of the Bernoulli; for grey the mean of the
        decoder's channels.
        """
        painted = self.decoder(z)
        return (painted.mean(1, keepdim=True) if channels == 1 else painted).to(z.dtype)

    def log_likelihood(self, image: Tensor, painted: Tensor) -> Tensor:
        """log p(x | z) of each picture (B,), in nats; a density for the Gaussian."""
        if self.likelihood == "bernoulli":
            return -F.binary_cross_entropy_with_logits(painted, image, reduction="none").flatten(1).sum(1)
        scaled = (image - painted) * (-self.log_sigma).exp()
        return -(0.5 * scaled.square() + self.log_sigma + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """`backbone`, and `code`, the mean of the posterior."""
        pooled = self.backbone.pool(image)
        return {"backbone": pooled, "code": self.posterior(pooled).chunk(2, dim=1)[0]}

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Reconstructions through the mean of the posterior; pictures drawn from the prior; and what each dimension
        does.

        A row of the traversal is one dimension, the most telling first, from -3 to 3 deviations of the prior, all else
        as in the first picture.
        """
        image = to_float(batch["image"])
        mean, log_variance = self.encode(image)
        samples = torch.randn(32, self.code, dtype=mean.dtype, device=mean.device)
        dimensions = kl_from_prior(mean, log_variance).mean(0).topk(min(8, self.code)).indices
        walks = mean[:1].expand(9, -1).repeat(len(dimensions), 1, 1)  # (rows, 9, M)
        for walk, dimension in zip(walks, dimensions):
            walk[:, dimension] = torch.linspace(-3, 3, 9, dtype=mean.dtype, device=mean.device)
        channels = image.shape[1]
        return {
            "reconstruction": rows_of(image[:8], self.paint(mean[:8], channels)),
            "samples": rows_of(*self.paint(samples, channels).split(8)),
            "traversal": rows_of(*self.paint(walks.flatten(0, 1), channels).split(9)),
        }

    def paint(self, z: Tensor, channels: int) -> Tensor:
        """(B, M) -> the mean picture (B, channels, H, W) in [0, 1]."""
        painted = self.decode(z, channels)
        return painted.sigmoid() if self.likelihood == "bernoulli" else painted.clamp(0, 1)


def kl_from_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats, elementwise (appendix B of the paper)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)

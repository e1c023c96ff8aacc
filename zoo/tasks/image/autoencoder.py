"""Squeeze a picture into a few numbers and paint it again from them: what survives the squeeze is what pictures are
made of.

    image (+ noise) --> backbone --> pool --> code (B, M) --> decoder --> painted --+
                                                   |                                |
                                                   +--> sparsity, if wanted         |
    image .........................................................................>+
                                                                                    |
                                                             squared error <---------+

Hinton, Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks",
https://doi.org/10.1126/science.1127647
Denoising: Vincent, Larochelle, Bengio, Manzagol 2008, "Extracting and Composing Robust Features with Denoising
Autoencoders", https://doi.org/10.1145/1390156.1390294
Sparse: Ng 2011, "Sparse autoencoder", lecture notes of CS294A,
https://web.stanford.edu/class/cs294a/sparseAutoencoder.pdf

Differs: trained as a whole from the start, without the layer by layer pretraining of 2006.
Differs: the noise is Gaussian and clipped to [0, 1], as a camera's would be, where the paper of 2008 sets pixels to
zero.
Differs: the squared error is a mean over pixels, not half a sum, so that learning rates carry over between picture
sizes; the weight of the sparsity is in units of that mean.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.heads import picture_decoder
from zoo.losses import total
from zoo.ranges import Count, Fraction, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop


@register_task("autoencoder")
class Autoencoder(PretextTask):
    """Reconstruction through a bottleneck; denoising with `noise`, sparse with `sparsity`.

    Args:
        code: how many numbers a picture is squeezed into, M; fewer than it has values.
        decoder: how the code becomes a picture again; auto takes a transformer for a ViT and convolutions for
            everything else.
        width: channels of the last map of `conv`; half the width of `transformer`.
        noise: standard deviation of the noise that the backbone sees and the target lacks, where a picture's values go
            from 0 to 1.
        sparsity: how active each number of the code should be on average, above 0 and below 1; the code is then a
            sigmoid. 0 leaves it linear and free.
        sparsity_weight: how much a code that isn't sparse costs, in units of the squared error.
        smallest_crop: least share of the picture's area that is shown, 0 to 1; 1 is no cropping of square pictures.
        flip: chance of a mirrored picture.
    """

    def __init__(
        self,
        backbone: Backbone,
        code: Count = 64,
        decoder: Literal["auto", "conv", "transformer", "linear"] = "auto",
        width: Count = 32,
        noise: Weight = 0.0,
        sparsity: Fraction = 0.0,
        sparsity_weight: Weight = 0.001,
        smallest_crop: Share = 1.0,
        flip: Share = 0.0,
    ):
        super().__init__(backbone)
        values = backbone.channels * backbone.size**2
        if code >= values:
            raise ZooError(f"task.code is {code}, and a picture has {values} values; a bottleneck has fewer")
        self.code, self.noise, self.sparsity, self.sparsity_weight = code, noise, sparsity, sparsity_weight
        self.smallest_crop, self.flip = smallest_crop, flip
        if decoder == "auto":
            decoder = "transformer" if backbone.sees_patches else "conv"
        self.squeeze = nn.Linear(backbone.num_features, code)
        self.decoder = picture_decoder(decoder, code, backbone.channels, backbone.size, width)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """What the backbone sees and what it should paint, both (B, C, H, W) and the same unless `noise`."""
        ratio = (1.0, 1.0) if self.smallest_crop == 1 else (3 / 4, 4 / 3)
        clean = random_resized_crop(
            batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), ratio=ratio, flip=self.flip
        )
        if self.code >= clean[0].numel():  # grey pictures, when the backbone was made for colour
            raise ZooError(
                f"task.code is {self.code}, and a grey picture has {clean[0].numel()} values; a bottleneck has fewer"
            )
        if self.noise == 0:
            return clean, clean
        return (clean + self.noise * torch.randn_like(clean)).clamp(0, 1), clean

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        seen, clean = views
        code = self.encode(seen)
        painted = self.decode(code, clean.shape[1])
        with torch.autocast(clean.device.type, enabled=False):
            error = (painted.to(clean.dtype) - clean).square().mean()
            logs = {"squared_error": error.detach()}
            if self.sparsity == 0:
                return TaskOutput(error, logs)
            active = code.to(clean.dtype)
            mean = total(active.sum(0)) / total(active.new_tensor(len(active)))  # over the global batch
            penalty = kl_bernoulli(self.sparsity, mean).sum()
        return TaskOutput(
            error + self.sparsity_weight * penalty,
            logs | {"sparsity": penalty.detach(), "activity": mean.mean().detach()},
        )

    def encode(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> the code (B, M)."""
        return self.squeezed(self.backbone.pool(image))

    def squeezed(self, pooled: Tensor) -> Tensor:
        """(B, D) -> the code (B, M)."""
        code = self.squeeze(pooled)
        return code.sigmoid() if self.sparsity > 0 else code

    def decode(self, code: Tensor, channels: int) -> Tensor:
        """(B, M) -> (B, channels, H, W); for grey pictures the mean of the decoder's channels."""
        painted = self.decoder(code)
        return painted.mean(1, keepdim=True) if channels == 1 else painted

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """`backbone`, and `code`, the numbers that a picture is squeezed into."""
        pooled = self.backbone.pool(image)
        return {"backbone": pooled, "code": self.squeezed(pooled)}

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures, what the backbone saw if that was noisy, and what was painted from the code."""
        seen, clean = self.views({"image": batch["image"][:8]})
        painted = self.decode(self.encode(seen), clean.shape[1]).to(clean.dtype).clamp(0, 1)
        return {"reconstruction": rows_of(clean, seen, painted) if self.noise > 0 else rows_of(clean, painted)}


def kl_bernoulli(wanted: float, mean: Tensor) -> Tensor:
    """KL(Bernoulli(wanted) || Bernoulli(mean)) in nats, elementwise; 0 where they agree (Ng 2011, section 3)."""
    mean = mean.clamp(1e-6, 1 - 1e-6)
    return wanted * (wanted / mean).log() + (1 - wanted) * ((1 - wanted) / (1 - mean)).log()

"""Describe a picture by a few words of a small vocabulary that is learned along with it, and paint it again from them.

    image --> backbone --> map --> z (B, M, h, w) --> nearest of K words --> decoder --> painted
                                     |                    |                                 |
                                     +--> commitment <....+               squared error <---+

    the gradient passes the words as if z itself had been decoded
    the words follow the means of the z that chose them

van den Oord, Vinyals, Kavukcuoglu 2017, "Neural Discrete Representation Learning", https://arxiv.org/abs/1711.00937

Differs: the codebook follows moving averages, as in the paper's appendix A.1, not a gradient.
Differs: the codebook begins with features of the first batch, and codes that fell out of use are set to the places of a
batch that are described worst, so that the whole vocabulary stays in use; neither draws anything. The paper leaves dead
codes dead.
Differs: the error of the picture is a mean over pixels, that of the commitment a mean over the numbers of all places.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.heads import map_decoder
from zoo.losses import gather, total, wide
from zoo.ranges import Count, Fraction, Positive, Several, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop

USED = 0.03  # a code is dead below this share of an even use
GOLDEN = (5**0.5 - 1) / 2


@register_task("vqvae")
class VQVAE(PretextTask):
    """Vector-quantised autoencoder: each place of the backbone's last map becomes the nearest of K learned vectors.

    Args:
        codes: entries of the codebook, K; at least 2.
        code: numbers of an entry, M.
        commitment: how much a feature that is far from its entry costs, in units of the picture's error; above 0, or
            features drift away.
        decay: of the moving averages that the codebook follows, at least 0 and below 1; in short runs lower than the
            paper's 0.99.
        width: channels of the decoder's last map.
        smallest_crop: least share of the picture's area that is shown, 0 to 1; 1 is no cropping of square pictures.
        flip: chance of a mirrored picture.
    """

    def __init__(
        self,
        backbone: Backbone,
        codes: Several = 128,
        code: Count = 32,
        commitment: Positive = 0.25,
        decay: Fraction = 0.95,
        width: Count = 16,
        smallest_crop: Share = 1.0,
        flip: Share = 0.0,
    ):
        backbone.require_plain_pooling("vqvae")
        super().__init__(backbone)
        self.commitment, self.smallest_crop, self.flip = commitment, smallest_crop, flip
        features = backbone.num_features if backbone.sees_patches else backbone.map_features
        self.squeeze = nn.Conv2d(features, code, 1)
        self.codebook = Codebook(codes, code, decay)
        self.decoder = map_decoder(code, backbone.channels, backbone.size, width)

    def views(self, batch: dict) -> tuple[Tensor]:
        """The picture (B, C, H, W) in [0, 1]."""
        ratio = (1.0, 1.0) if self.smallest_crop == 1 else (3 / 4, 4 / 3)
        size, scale = self.backbone.size, (self.smallest_crop, 1.0)
        return (random_resized_crop(batch["image"], size, scale=scale, ratio=ratio, flip=self.flip),)

    def forward(self, views: tuple[Tensor]) -> TaskOutput:
        (image,) = views
        z = wide(self.encode(image))  # (B, M, h, w)
        with torch.autocast(image.device.type, enabled=False):
            self.codebook.begin(z.detach())
            index = self.codebook.nearest(z)
            chosen = self.codebook(index)
            commitment = (z - chosen).square().mean()
            straight = z + (chosen - z).detach()  # the decoder's gradient goes to z as it is
        painted = self.decode(straight, image.shape[1])
        with torch.autocast(image.device.type, enabled=False):
            error = (wide(painted) - image).square().mean()
            logs = {
                "squared_error": error.detach(),
                "commitment": commitment.detach(),
                "perplexity": self.codebook.perplexity(index),
            }
            self.codebook.update(z.detach(), index)
        return TaskOutput(error + self.commitment * commitment, logs)

    def encode(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, M, h, w): what is quantised, of every place of the last map or of every patch."""
        if not self.backbone.sees_patches:
            return self.squeeze(self.backbone.map(image))
        tokens = self.backbone.tokens(image)[:, self.backbone.num_prefix_tokens :]
        return self.squeeze(tokens.mT.unflatten(2, (image.shape[-2] // self.backbone.patch_size, -1)))

    def codes(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> the words of a picture (B, h, w) int64, 0 to K - 1."""
        return self.codebook.nearest(wide(self.encode(image)))

    def decode(self, quantised: Tensor, channels: int) -> Tensor:
        """(B, M, h, w) -> (B, channels, H, W); for grey pictures the mean of the decoder's channels."""
        painted = self.decoder(quantised)
        return painted.mean(1, keepdim=True) if channels == 1 else painted

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures, their codes as shades of grey, and what is painted from the codes alone."""
        (image,) = self.views({"image": batch["image"][:8]})
        index = self.codes(image)
        shades = nn.functional.interpolate(index.unsqueeze(1) / (len(self.codebook.vectors) - 1), image.shape[-2:])
        painted = self.decode(self.codebook(index), image.shape[1]).to(image.dtype).clamp(0, 1)
        return {"reconstruction": rows_of(image, shades, painted)}


class Codebook(nn.Module):
    """K vectors of M numbers, each the moving average of the features that were nearest to it (appendix A.1 of the
    paper).

    Statistics are those of all ranks, and nothing is drawn. It is all zeros until it has begun.
    """

    def __init__(self, count: int, dim: int, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("vectors", torch.zeros(count, dim))
        self.register_buffer("sums", torch.zeros(count, dim))
        self.register_buffer("uses", torch.zeros(count))  # features per step, averaged

    def forward(self, index: Tensor) -> Tensor:
        """(B, h, w) -> (B, M, h, w)."""
        return self.vectors[index].movedim(-1, 1)

    @torch.no_grad()
    def begin(self, z: Tensor) -> None:
        """Become features (B, M, h, w) from all over the global batch, if this is the first that is trained on.

        A decoder that sees one code everywhere has BatchNorms without variance, and gradients a million times too
        large.
        """
        if self.training and not self.uses.any():
            rows = gather(z.movedim(1, -1).flatten(1, 2)).flatten(0, 1).to(self.vectors.dtype)
            # multiples of the golden ratio are spread evenly, in step with no row or column
            spread = torch.arange(len(self.uses), device=z.device, dtype=torch.float64) * GOLDEN % 1
            self.uses.fill_(len(rows) / len(self.uses))
            self.vectors.copy_(rows[(spread * len(rows)).long()])
            self.sums.copy_(self.vectors * self.uses.unsqueeze(1))

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """(B, M, h, w) -> (B, h, w): which vector is nearest to each place."""
        vectors = self.vectors.to(z.dtype)
        # the squared distance without |z|^2, which is the same for all vectors
        return (vectors.square().sum(1) - 2 * z.movedim(1, -1) @ vectors.T).argmin(-1)

    @torch.no_grad()
    def perplexity(self, index: Tensor) -> Tensor:
        """How many codes the places of the batch use, as if evenly: the exponential of their entropy, 1 to K."""
        share = total(torch.bincount(index.flatten(), minlength=len(self.uses)).to(self.vectors.dtype))
        share = share / share.sum()
        return (-(share * share.clamp(min=1e-12).log()).sum()).exp()

    @torch.no_grad()
    def update(self, z: Tensor, index: Tensor) -> None:
        """While training, follow the features (B, M, h, w) that `index` (B, h, w) assigned, then revive dead codes."""
        if not self.training:
            return
        rows, where = z.movedim(1, -1).flatten(1, 2).to(self.vectors.dtype), index.flatten(1)  # (B, h w, M), (B, h w)
        flat = where.flatten()
        self.uses.lerp_(total(torch.bincount(flat, minlength=len(self.uses)).to(self.uses.dtype)), 1 - self.decay)
        self.sums.lerp_(total(torch.zeros_like(self.sums).index_add_(0, flat, rows.flatten(0, 1))), 1 - self.decay)
        self.vectors.copy_(self.sums / self.uses.clamp(min=1e-6).unsqueeze(1))
        self._revive(rows, where)

    def _revive(self, rows: Tensor, where: Tensor) -> None:
        """Set dead codes to the features of the global batch that are farthest from their own code."""
        count = total(rows.new_tensor(float(where.numel())))
        dead = (self.uses < USED * count / len(self.uses)).nonzero()[:, 0]
        if not len(dead):
            return
        rows, error = gather(rows), gather((rows - self.vectors[where]).square().sum(-1))
        worst = error.flatten().topk(min(len(dead), error.numel())).indices
        dead = dead[: len(worst)]
        self.vectors[dead] = rows.flatten(0, 1)[worst]
        self.uses[dead] = count / len(self.uses)  # as if it had been in even use
        self.sums[dead] = self.vectors[dead] * self.uses[dead].unsqueeze(1)

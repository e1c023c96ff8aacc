"""From the visible part of a picture, predict how a slowly following copy of the network represents several blocks that
were left out.

    context patches --> backbone --> predictor, asked for M targets --> guess (B, M, m, D) --+
                                                                                             |
    whole image ..> teacher: a backbone that follows ..> its tokens at the targets .........>+
                                                                                             |
                                                                       smooth L1 <-----------+

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun, Ballas 2023, "Self-Supervised Learning from Images with a
Joint-Embedding Predictive Architecture", https://arxiv.org/abs/2301.08243

Differs: the context is the patches nearest to a random point that no target holds, as many in every picture as targets
that don't overlap leave over, where the authors cut a large block down to the batch's smallest number.
Differs: the area of a target is fixed, where the authors draw it from a range, and its aspect ratio is log-uniform,
where theirs is uniform; with several processes each draws a block shape of its own, where the authors' share one.
Differs: the backbone's positions are timm's, which a ViT learns, where the authors' are fixed sines; the predictor's
are fixed.
Differs: the teacher's momentum rises along half a cosine, where the authors' rises linearly.
Differs: the teacher's momentum starts at 0.99 and the predictor is two blocks deep, for small pictures and short runs.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.heads import Teacher, check_heads, sincos_2d
from zoo.losses import wide
from zoo.masks import mask_pixels
from zoo.optim import cosine
from zoo.ranges import Count, Part, Range, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop


@register_task("ijepa")
class IJEPA(PretextTask):
    """A student encodes a context block; a narrow predictor guesses its teacher's tokens of target blocks from it.

    Args:
        targets: blocks to predict, at least 1 and below the number of patches.
        target_area: share of the picture that one target block has, above 0; at least a patch, and so little that some
            context is left.
        target_ratio: height over width of a target block is drawn between 1 over this and this, at least 1.
        predictor_dim: width of the predictor, a multiple of 4 and of its heads.
        predictor_depth: transformer blocks of the predictor, at least 1.
        predictor_heads: attention heads of the predictor.
        momentum: of the teacher at the start, 0 to 1; it ends at 1 along half a cosine.
        smallest_crop: least share of the picture's area that is shown, 0 to 1; 1 is no cropping of square pictures.
        flip: chance of a mirrored picture; the paper has none.
    """

    training_only = ("teacher",)

    def __init__(
        self,
        backbone: Backbone,
        targets: Count = 4,
        target_area: Part = 0.175,
        target_ratio: Annotated[float, Range(1)] = 1.5,
        predictor_dim: Count = 64,
        predictor_depth: Count = 2,
        predictor_heads: Count = 4,
        momentum: Share = 0.99,
        smallest_crop: Share = 0.5,
        flip: Share = 0.0,
    ):
        from timm.models.vision_transformer import Block

        backbone.require_patches("ijepa")
        backbone.require_plain_pooling("ijepa")
        super().__init__(backbone)
        check_heads("task.predictor_dim", predictor_dim, "task.predictor_heads", predictor_heads)
        if targets >= backbone.num_patches:
            raise ZooError(
                f"task.targets is {targets}, and the picture has {backbone.num_patches} patches; give fewer than those"
            )
        self.side, self.targets, self.target_area, self.target_ratio = (
            backbone.size // backbone.patch_size,
            targets,
            target_area,
            target_ratio,
        )
        self.momentum, self.smallest_crop, self.flip = momentum, smallest_crop, flip
        self.embed = nn.Linear(backbone.num_features, predictor_dim)
        self.mask_token = nn.Parameter(torch.zeros(predictor_dim))
        self.register_buffer("position", sincos_2d(predictor_dim, self.side)[0], persistent=False)  # (N, predictor_dim)
        self.predictor = nn.Sequential(
            *[Block(predictor_dim, predictor_heads, qkv_bias=True) for _ in range(predictor_depth)],
            nn.LayerNorm(predictor_dim),
            nn.Linear(predictor_dim, backbone.num_features),
        )
        self.teacher = Teacher(backbone)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def views(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """The picture (B, C, H, W), the patches of its context (B, n) and those of its targets (B, M, m), int64."""
        image = random_resized_crop(batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        return image, *blocks(len(image), self.side, self.targets, self.target_area, self.target_ratio, image.device)

    def forward(self, views: tuple[Tensor, Tensor, Tensor]) -> TaskOutput:
        image, context, targets = views
        wanted = self.target(image, targets)
        error = self.error(self.predict(image, context, targets), wanted)
        return TaskOutput(
            error.mean(), {"target_deviation": wanted.flatten(0, 2).std(0).mean()}
        )  # towards 0 where all is alike

    def predict(self, image: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """(B, M, m, D): tokens of the targets, each block guessed by itself from the context (B, n) and where it lies
        (B, M, m).
        """
        count, size = targets.shape[1:]
        seen = self.embed(self.backbone.tokens(image, context)[:, self.backbone.num_prefix_tokens :])
        seen = (seen + self.position[context]).repeat_interleave(count, 0)  # (B M, n, d)
        asked = (self.mask_token + self.position[targets]).flatten(0, 1)  # (B M, m, d)
        return self.predictor(torch.cat([seen, asked.to(seen.dtype)], 1))[:, -size:].unflatten(0, (-1, count))

    @torch.no_grad()
    def target(self, image: Tensor, targets: Tensor) -> Tensor:
        """(B, M, m, D): the teacher's tokens of the whole picture, each with mean 0 and deviation 1, at the targets (B,
        M, m).
        """
        tokens = self.teacher[0].tokens(image)[:, self.backbone.num_prefix_tokens :]
        with torch.autocast(image.device.type, enabled=False):
            tokens = F.layer_norm(wide(tokens), tokens.shape[-1:])
        index = targets.flatten(1).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        return tokens.gather(1, index).unflatten(1, targets.shape[1:])

    def error(self, predicted: Tensor, target: Tensor) -> Tensor:
        """(..., D) each -> (...): the authors' smooth L1, a mean over the features."""
        with torch.autocast(target.device.type, enabled=False):
            return F.smooth_l1_loss(wide(predicted), target, reduction="none").mean(-1)

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.backbone, momentum=cosine(self.momentum, 1.0, progress))

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures, the context that the student sees of them, and the target blocks, brighter where they were guessed
        worse.
        """
        image, context, targets = self.views({"image": batch["image"][:8]})
        error = self.error(self.predict(image, context, targets), self.target(image, targets)).flatten(1)  # (B, M m)
        drawn = error.new_zeros(len(image), self.side**2).scatter(1, targets.flatten(1), error / error.max())
        unseen = torch.ones_like(drawn, dtype=torch.bool).scatter(1, context, False)
        drawn = F.interpolate(drawn.view(-1, 1, self.side, self.side), scale_factor=self.backbone.patch_size)
        return {
            "prediction": rows_of(image, image.masked_fill(mask_pixels(unseen, self.backbone.patch_size), 0.5), drawn)
        }


def blocks(batch: int, side: int, count: int, area: float, ratio: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Context patches (B, n) and target patches (B, count, m) int64 of pictures of side * side patches; no target is in
    the context.

    Each target is a box at a random place; all of a batch have one random shape, and every context as many patches. The
    context is the free patches that are nearest to a random point.
    """
    shape = math.exp((2 * torch.rand(()).item() - 1) * math.log(ratio) / 2)  # root of height over width
    root, most = (area * side**2) ** 0.5, (side**2 - 1) // count
    height = min(max(1, round(root * shape)), side, most)
    width = min(max(1, round(root / shape)), side, most // height)
    top = torch.randint(side - height + 1, (batch, count, 1, 1), device=device)
    left = torch.randint(side - width + 1, (batch, count, 1, 1), device=device)
    rows, columns = torch.arange(height, device=device).view(-1, 1), torch.arange(width, device=device)
    targets = ((top + rows) * side + left + columns).flatten(2)  # (B, count, m)
    place, centre = torch.arange(side, device=device) + 0.5, torch.rand(2, batch, 1, device=device) * side
    distance = torch.maximum((place - centre[0]).abs()[:, :, None], (place - centre[1]).abs()[:, None, :]).flatten(1)
    taken = distance.scatter(1, targets.flatten(1), float("inf"))
    return taken.argsort(1)[:, : side**2 - count * height * width], targets

"""Hide half of a picture and predict, at the hidden places, what a slowly following copy of the network makes of the
whole picture.

    image --> patches, a block masked --> backbone --> head --> guess (B, N, D) --+
                                                                                  |
    image ..> teacher, sees all: mean of its last blocks' feed-forward parts ....>+
                                                                                  |
                                             smooth L1 of hidden patches <---------+

Baevski, Hsu, Xu, Babu, Gu, Auli 2022, "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and
Language", https://arxiv.org/abs/2202.03555

Differs: the teacher's momentum goes from 0.99 to 1 along half a cosine, and the mask is one block, both for small
pictures and short runs.
Differs: the target is made of feed-forward parts, as in the paper, where the authors' command for pictures takes the
outputs of blocks.
Differs: there is no colour jitter, which the authors' code has.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.heads import Teacher
from zoo.losses import wide
from zoo.masks import block_mask, hidden_count, mask_pixels
from zoo.optim import cosine
from zoo.ranges import Natural, Part, Positive, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop


@register_task("data2vec")
class Data2Vec(PretextTask):
    """The student sees a masked picture and regresses the mean of its teacher's last blocks, which see all of it.

    Args:
        mask_ratio: share of patches that are hidden, above 0 and below 1, as one block of random shape.
        blocks: the last blocks of the teacher whose feed-forward parts are averaged, 1 to the backbone's depth; 0 is
            the upper half of them.
        loss: smooth_l1, which counts large errors less, or l2, the squared error.
        beta: error up to which smooth_l1 is squared, above 0.
        momentum: of the teacher at the start, 0 to 1; it ends at 1 along half a cosine.
        smallest_crop: least share of the picture's area that is shown, 0 to 1; 1 is no cropping of square pictures.
        flip: chance of a mirrored picture.
    """

    training_only = ("teacher",)

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: Part = 0.6,
        blocks: Natural = 0,
        loss: Literal["smooth_l1", "l2"] = "smooth_l1",
        beta: Positive = 2.0,
        momentum: Share = 0.99,
        smallest_crop: Share = 0.5,
        flip: Share = 0.5,
    ):
        backbone.require_feedforwards("data2vec")
        backbone.require_plain_pooling("data2vec")
        super().__init__(backbone)
        depth = len(backbone.model.blocks)
        if blocks > depth:
            raise ZooError(
                f"task.blocks is {blocks}, and {backbone.name} has {depth}; give 1 to {depth}, or 0 for the upper "
                "half of them"
            )
        self.side = backbone.size // backbone.patch_size
        self.hidden = hidden_count(mask_ratio, self.side**2)
        self.blocks, self.loss, self.beta, self.momentum = blocks or -(-depth // 2), loss, beta, momentum
        self.smallest_crop, self.flip = smallest_crop, flip
        self.mask_token = nn.Parameter(torch.zeros(backbone.num_features))
        self.head = nn.Linear(backbone.num_features, backbone.num_features)
        self.teacher = Teacher(backbone)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """The picture (B, C, H, W) and the mask (B, N), True where a patch is hidden from the student."""
        image = random_resized_crop(batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        return image, block_mask(len(image), self.side, self.hidden, image.device)

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        image, mask = views
        target, predicted = self.target(image)[mask], self.predict(image, mask)[mask]  # (B n, D), n hidden patches each
        loss = self.error(predicted, target).mean()
        return TaskOutput(loss, {"target_deviation": target.std(0).mean()})  # towards 0 where all is alike

    def predict(self, image: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D): the student's guess of the target, from what the mask lets through."""
        tokens = self.backbone.tokens(image, mask=mask, mask_token=self.mask_token)
        return self.head(tokens[:, self.backbone.num_prefix_tokens :])

    @torch.no_grad()
    def target(self, image: Tensor) -> Tensor:
        """(B, N, D): the mean of what the teacher's last blocks add by their feed-forward parts, each token with mean 0
        and deviation 1 in every block.
        """
        parts = self.teacher[0].feedforwards(image)[-self.blocks :]  # (B, N, D) each
        with torch.autocast(image.device.type, enabled=False):
            tokens = wide(torch.stack(parts))
            return F.layer_norm(tokens, tokens.shape[-1:]).mean(0)

    def error(self, predicted: Tensor, target: Tensor) -> Tensor:
        """(..., D) each -> (...): mean over the features."""
        with torch.autocast(target.device.type, enabled=False):
            if self.loss == "l2":
                return F.mse_loss(wide(predicted), target, reduction="none").mean(-1)
            return F.smooth_l1_loss(wide(predicted), target, reduction="none", beta=self.beta).mean(-1)

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.backbone, momentum=cosine(self.momentum, 1.0, progress))

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures, what the student sees of them, and the hidden patches, brighter where their representation was
        guessed worse.
        """
        image, mask = self.views({"image": batch["image"][:8]})
        error = self.error(self.predict(image, mask), self.target(image)) * mask
        error = (
            (error / error.max()).unflatten(1, (1, self.side, self.side)).repeat_interleave(self.backbone.patch_size, 2)
        )
        seen = image.masked_fill(mask_pixels(mask, self.backbone.patch_size), 0.5)
        return {"prediction": rows_of(image, seen, error.repeat_interleave(self.backbone.patch_size, 3))}

"""Hide a part of a picture, and guess how a slowly following copy of the network sorts the whole picture and each of
the hidden patches.

    large views,               +--> pool, and of small views --> head --> logits (B, 2 + V, K) --+
    a block of     --> backbone +                                                                |
    each masked                +--> hidden patches --> head --> logits (B n, K) -----------------+
                                                                                                 |
    large views, whole ..> teacher: copies that follow ..> both, centred and sharpened .........>+
                                                                                                 |
                                                          cross-entropy of each kind <-----------+

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong 2022, "iBOT: Image BERT Pre-Training with Online Tokenizer",
https://arxiv.org/abs/2111.07832

Differs: what stands for the whole picture is the mean of its tokens, as the recipes' ViTs have it, and not a class
token.
Differs: every large view is masked, by one block of a fixed share, where the authors leave half of them whole.
Differs: the head has ReLU and, in its hidden layers and before the prototypes, BatchNorm, and temperatures are
constant, for short runs with small batches.
Differs: all views are blurred with the same chance and none is solarised.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.heads import Centre, Teacher, check_temperatures, prototype_head
from zoo.losses import soft_cross_entropy, view_cross_entropy, wide
from zoo.masks import block_mask, hidden_count, hidden_tokens, mask_pixels
from zoo.optim import cosine
from zoo.ranges import Count, LargeCrop, Natural, Part, Positive, Several, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import each_view, in_turn, multi_crop


@register_task("ibot")
class IBOT(PretextTask):
    """Self-distillation of pooled tokens across views, as in DINO, and of hidden patches within a view; one head for
    both.

    Args:
        prototypes: learned directions that pictures and patches are sorted by, at least 2.
        mask_ratio: share of patches of a large view that the student doesn't see, above 0 and below 1.
        patch_weight: of the patches' loss beside that of the pictures, at least 0.
        small_count: small views beside the two large ones, at least 0.
        small_size: side of a small view in pixels; 0 is the side of a large one. Less costs less, and needs
            dynamic_img_size: true.
        student_temperature: softness of the student's choice, above 0.
        teacher_temperature: softness of the teacher's, above 0 and at most the student's.
        centre_momentum: of the running means of the teacher's logits, 0 to 1.
        momentum: of the teacher at the start, 0 to 1; it ends at 1 along half a cosine.
        hidden: width of the head's hidden layers.
        bottleneck: width in which prototypes are compared.
        smallest_crop: least share of the picture's area that a large view shows, 0.05 to 1; a small view shows 0.05 to
            this.
        jitter: strength of the colour jitter; 1 is SimCLR's, 0 none.
        grayscale: chance of a view without colour.
        blur: chance of a blurred view.
        flip: chance of a mirrored view; 0 for writing and other things that have a side.
    """

    training_only = ("teacher", "centre", "patch_centre")

    def __init__(
        self,
        backbone: Backbone,
        prototypes: Several = 256,
        mask_ratio: Part = 0.4,
        patch_weight: Weight = 1.0,
        small_count: Natural = 2,
        small_size: Natural = 0,
        student_temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.04,
        centre_momentum: Share = 0.9,
        momentum: Share = 0.99,
        hidden: Count = 512,
        bottleneck: Count = 128,
        smallest_crop: LargeCrop = 0.3,
        jitter: Weight = 0.5,
        grayscale: Share = 0.2,
        blur: Share = 0.5,
        flip: Share = 0.5,
    ):
        backbone.require_patches("ibot")
        super().__init__(backbone)
        check_temperatures(student_temperature, teacher_temperature)
        self.small_size = small_size or backbone.size
        backbone.require_size(self.small_size, "task.small_size")
        self.side = backbone.size // backbone.patch_size
        self.hidden_patches, self.patch_weight = hidden_count(mask_ratio, self.side**2), patch_weight
        self.small_count, self.momentum = small_count, momentum
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.smallest_crop, self.flip = smallest_crop, flip
        self.jitter, self.grayscale, self.blur = jitter, grayscale, blur
        self.mask_token = nn.Parameter(torch.zeros(backbone.num_features))
        self.head = prototype_head(backbone.num_features, hidden, bottleneck, prototypes)
        self.teacher = Teacher(backbone, self.head)
        self.centre, self.patch_centre = Centre(prototypes, centre_momentum), Centre(prototypes, centre_momentum)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def views(self, batch: dict) -> tuple[Tensor, ...]:
        """Two large views (B, 2, C, H, W), the small ones (B, V, C, h, w) if there are, and which patches of the large
        are hidden (B, 2, N).
        """
        kinds = multi_crop(
            batch["image"],
            self.backbone.size,
            self.small_size,
            self.small_count,
            self.smallest_crop,
            self.jitter,
            self.grayscale,
            self.blur,
            self.flip,
        )
        count = len(batch["image"])
        return *kinds, block_mask(2 * count, self.side, self.hidden_patches, kinds[0].device).unflatten(0, (count, 2))

    def forward(self, views: tuple[Tensor, ...]) -> TaskOutput:
        large, *small, mask = views
        pairs, large, mask = mask.shape[:2], large.flatten(0, 1), mask.flatten(0, 1)  # (B, 2), (2 B, C, H, W), (2 B, N)
        tokens = self.backbone.tokens(large, mask=mask, mask_token=self.mask_token)
        whole = self.backbone.pooled(tokens).unflatten(0, pairs)  # (B, 2, D)
        pooled = torch.cat([whole, *(each_view(self.backbone.pool, kind) for kind in small)], 1)
        logits = each_view(self.head, pooled)  # (B, 2 + V, K)
        patch_logits = self.head(hidden_tokens(tokens, mask))  # (2 B n, K), n hidden patches each
        taught, taught_patches = self.teach(large, mask)
        target = self.centre.sharpened(taught, self.teacher_temperature).unflatten(0, pairs)
        patch_target = self.patch_centre.sharpened(taught_patches, self.teacher_temperature)
        pictures = view_cross_entropy(logits, target, self.student_temperature)
        patches = soft_cross_entropy(wide(patch_logits) / self.student_temperature, patch_target).mean()
        self.centre.update(taught)
        self.patch_centre.update(taught_patches)
        return TaskOutput(
            pictures + self.patch_weight * patches, {"picture_loss": pictures.detach(), "patch_loss": patches.detach()}
        )

    @torch.no_grad()
    def teach(self, large: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits of whole pictures, (2 B, K), and of those of their patches that the student doesn't see,
        (2 B n, K).
        """
        body, head = self.teacher[0], self.teacher[1]
        tokens = body.tokens(large)
        return head(body.pooled(tokens)), head(hidden_tokens(tokens, mask))

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.backbone, self.head, momentum=cosine(self.momentum, 1.0, progress))

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures above their large views as the student sees them, and the small ones."""
        large, *small, mask = self.views({"image": batch["image"][:8]})
        hidden = mask_pixels(mask.flatten(0, 1), self.backbone.patch_size)
        seen = large.flatten(0, 1).masked_fill(hidden, 0.5).unflatten(0, mask.shape[:2])
        return {"views": rows_of(batch["image"][:8], *in_turn(seen, *small))}

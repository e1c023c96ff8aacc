"""From a small part of a picture, guess how a slowly following copy of the network sorts the whole picture into groups
of its own making.

    large and small views --> backbone --> pool --> head --> logits (B, 2 + V, K) --+
                                                                                    |
    large views ..> teacher: copies that follow ..> centred, sharpened ............>+
                                                                                    |
                  cross-entropy of each view with each other view's target <---------+

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin 2021, "Emerging Properties in Self-Supervised Vision
Transformers", https://arxiv.org/abs/2104.14294

Differs: the head has ReLU, where the authors have GELU, and BatchNorm in its hidden layers, an option of theirs, and
before the prototypes, where they have none; short runs with small batches need it.
Differs: the temperature of the teacher is constant and the prototypes learn from the first step on; both are cares of
long runs.
Differs: a ViT is read by average pooling, without a class token, as its recipes say.
Differs: all views are blurred with the same chance and none is solarised, where the authors blur one large view always
and the other seldom.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.backbones import Backbone
from zoo.grid import image_grid, rows_of
from zoo.heads import Centre, Teacher, check_temperatures, prototype_head
from zoo.losses import view_cross_entropy
from zoo.optim import cosine
from zoo.ranges import Count, LargeCrop, Natural, Positive, Several, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import each_view, in_turn, multi_crop, resize


@register_task("dino")
class DINO(PretextTask):
    """Self-distillation: all views of a student learn the sharpened, centred prototypes of its teacher's large views.

    Args:
        prototypes: learned directions that pictures are sorted by, at least 2.
        small_count: small views beside the two large ones, at least 0.
        small_size: side of a small view in pixels; 0 is the side of a large one. Less than that costs less, and a ViT
            then needs
            dynamic_img_size: true.
        student_temperature: softness of the student's choice, above 0.
        teacher_temperature: softness of the teacher's, above 0 and at most the student's: sharpening keeps it from
            becoming uniform.
        centre_momentum: of the running mean of the teacher's logits, 0 to 1; centring keeps it from becoming the same
            for all pictures.
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

    training_only = ("teacher", "centre")

    def __init__(
        self,
        backbone: Backbone,
        prototypes: Several = 256,
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
        super().__init__(backbone)
        check_temperatures(student_temperature, teacher_temperature)
        self.small_size = small_size or backbone.size
        backbone.require_size(self.small_size, "task.small_size")
        self.small_count, self.momentum = small_count, momentum
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.smallest_crop, self.flip = smallest_crop, flip
        self.jitter, self.grayscale, self.blur = jitter, grayscale, blur
        self.head = prototype_head(backbone.num_features, hidden, bottleneck, prototypes)
        self.teacher = Teacher(backbone, self.head)
        self.centre = Centre(prototypes, centre_momentum)

    def views(self, batch: dict) -> tuple[Tensor, ...]:
        """Two large views (B, 2, C, H, W), and the small ones (B, V, C, h, w) if there are."""
        return multi_crop(
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

    def forward(self, views: tuple[Tensor, ...]) -> TaskOutput:
        logits = each_view(self.head, each_view(self.backbone.pool, *views))  # (B, 2 + V, K)
        taught = each_view(self.teacher, views[0])  # (B, 2, K)
        target = self.centre.sharpened(taught, self.teacher_temperature)
        loss = view_cross_entropy(logits, target, self.student_temperature)
        self.centre.update(taught.flatten(0, 1))
        return TaskOutput(
            loss, {"teacher_entropy": entropy(target).mean(), "prototype_entropy": entropy(target.mean((0, 1)))}
        )

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.backbone, self.head, momentum=cosine(self.momentum, 1.0, progress))

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures above their views; and the batch in the order of the prototypes that the teacher sorts each picture
        to.
        """
        few, taught = batch["image"][:8], self.teacher(resize(batch["image"], self.backbone.size))
        sorted_by = self.centre.sharpened(taught, self.teacher_temperature).argmax(1).argsort(stable=True)
        return {
            "views": rows_of(few, *in_turn(*self.views({"image": few}))),
            "prototypes": image_grid(batch["image"][sorted_by][:64]),
        }


def entropy(p: Tensor) -> Tensor:
    """(..., K) distributions -> (...) in nats: from 0, where one prototype has all, to log K, where all have the
    same.
    """
    return -torch.xlogy(p, p).sum(-1)

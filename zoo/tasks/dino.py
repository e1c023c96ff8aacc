"""From a small part of a picture, guess how a slowly following copy of the network sorts the whole picture into groups of its own making.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin 2021, "Emerging Properties in Self-Supervised Vision Transformers",
https://arxiv.org/abs/2104.14294

Differs: the head has ReLU and BatchNorm, which the authors' code leaves as an option and which short runs with small batches need.
Differs: the temperature of the teacher is constant and the prototypes learn from the first step on; both are cares of long runs.
Differs: a ViT is read by average pooling, without a class token, as its recipes say.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import image_grid, rows_of
from zoo.heads import Centre, Prototypes, Teacher, projector
from zoo.losses import view_cross_entropy, wide
from zoo.optim import cosine
from zoo.registry import register_task
from zoo.tasks.base import PretextTask, TaskOutput
from zoo.views import multi_crop, resize


@register_task("dino")
class DINO(PretextTask):
    """Self-distillation: all views of a student learn the sharpened, centred prototypes of its teacher's large views.

    Args:
        prototypes: learned directions that pictures are sorted by, at least 2.
        small_count: small views beside the two large ones, at least 0.
        small_size: side of a small view in pixels; 0 is the side of a large one. Less than that costs less, and a ViT then needs
            dynamic_img_size: true.
        student_temperature: softness of the student's choice, above 0.
        teacher_temperature: softness of the teacher's, above 0 and below the student's: sharpening keeps it from becoming uniform.
        centre_momentum: of the running mean of the teacher's logits, 0 to 1; centring keeps it from becoming the same for all pictures.
        momentum: of the teacher at the start, 0 to 1; it ends at 1 along half a cosine.
        hidden: width of the head's hidden layers.
        bottleneck: width in which prototypes are compared.
        smallest_crop: least share of the picture's area that a large view shows, 0 to 1; at most as much is shown by a small one.
        jitter: strength of the colour jitter; 1 is SimCLR's, 0 none.
        grayscale: chance of a view without colour.
        blur: chance of a blurred view.
        flip: chance of a mirrored view; 0 for writing and other things that have a side.
    """

    training_only = ("teacher", "centre")

    def __init__(self, backbone: Backbone, prototypes: int = 256, small_count: int = 2, small_size: int = 0, student_temperature: float = 0.1,
                 teacher_temperature: float = 0.04, centre_momentum: float = 0.9, momentum: float = 0.99, hidden: int = 512,
                 bottleneck: int = 128, smallest_crop: float = 0.3, jitter: float = 0.5, grayscale: float = 0.2, blur: float = 0.5,
                 flip: float = 0.5):
        super().__init__(backbone)
        if not 0 < teacher_temperature <= student_temperature:
            raise ZooError(f"task.teacher_temperature is {teacher_temperature}; it has to be above 0 and at most task.student_temperature, "
                           f"which is {student_temperature}")
        self.small_size = small_size or backbone.size
        backbone.require_size(self.small_size, "task.small_size")
        self.small_count, self.momentum = small_count, momentum
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.smallest_crop, self.jitter, self.grayscale, self.blur, self.flip = smallest_crop, jitter, grayscale, blur, flip
        self.head = nn.Sequential(projector(backbone.num_features, hidden, bottleneck, layers=3), Prototypes(bottleneck, prototypes))
        self.teacher = Teacher(backbone, self.head)
        self.centre = Centre(prototypes, centre_momentum)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Two large views (B, 2, C, H, W) and the small ones (B, V, C, h, w)."""
        large, small = multi_crop(batch["image"], self.backbone.size, self.small_size, self.small_count, (self.smallest_crop, 1.0),
                                  (0.05, self.smallest_crop), self.jitter, self.grayscale, self.blur, self.flip)
        count = len(batch["image"])
        return large.unflatten(0, (2, count)).transpose(0, 1), small.unflatten(0, (self.small_count, count)).transpose(0, 1)

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        large, small = views
        features = [self.backbone.pool(part.flatten(0, 1)).unflatten(0, part.shape[:2]) for part in (large, small) if part.shape[1]]
        features = torch.cat(features, 1)                                                       # (B, 2 + V, D)
        logits = self.head(features.flatten(0, 1)).unflatten(0, features.shape[:2])             # (B, 2 + V, K)
        taught = self.teacher(large.flatten(0, 1)).unflatten(0, large.shape[:2])                # (B, 2, K)
        target = self.targets(taught)
        loss = view_cross_entropy(logits, target, self.student_temperature)
        self.centre.update(taught.flatten(0, 1))
        return TaskOutput(loss, {"teacher_entropy": entropy(target).mean(), "prototype_entropy": entropy(target.mean((0, 1)))})

    def targets(self, taught: Tensor) -> Tensor:
        """The teacher's logits (..., K), centred and sharpened to distributions over the prototypes."""
        with torch.autocast(taught.device.type, enabled=False):
            return ((wide(taught) - self.centre.value) / self.teacher_temperature).softmax(-1)

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.backbone, self.head, momentum=cosine(self.momentum, 1.0, progress))

    @torch.no_grad()
    def picture(self, batch: dict) -> dict[str, Tensor]:
        """Pictures above their views; and the batch in the order of the prototypes that the teacher sorts each picture to."""
        large, small = (part.transpose(0, 1) for part in self.views({"image": batch["image"][:8]}))
        sorted_by = self.targets(self.teacher(resize(batch["image"], self.backbone.size))).argmax(1).argsort(stable=True)
        return {"views": rows_of(batch["image"][:8], *large, *small), "prototypes": image_grid(batch["image"][sorted_by][:64])}


def entropy(p: Tensor) -> Tensor:
    """(..., K) distributions -> (...) in nats: from 0, where one prototype has all, to log K, where all have the same."""
    return -torch.xlogy(p, p).sum(-1)

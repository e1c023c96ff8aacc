"""A view should look like the nearest picture that the network remembers of the other view: friends attract, not only
copies of oneself.

              +--> view 1 --> backbone --> pool --> projector --> z1 ..> nearest remembered ..>+
    image ----+                                                                                |
              +--> view 2 --> backbone --> pool --> projector --> z2 --> predictor --> guess --+
                                                                                               |
              contrast over the batch, and the same with the views exchanged <-----------------+

Dwibedi, Aytar, Tompson, Sermanet, Zisserman 2021, "With a Little Help from My Friends: Nearest-Neighbor Contrastive
Learning of Visual Representations", https://arxiv.org/abs/2104.14548

Differs: both views are one batch to every BatchNorm, of which the paper does not speak.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.backbones import Backbone
from zoo.grid import rows_of
from zoo.heads import Queue, mlp, projector
from zoo.losses import gather, normalized
from zoo.ranges import Count, Positive, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import simclr_view, to_float


@register_task("nnclr")
class NNCLR(PretextTask):
    """Contrastive learning in which a view's nearest neighbour in a queue of earlier pictures takes its place.

    Args:
        temperature: softness of the contrast, above 0; lower looks harder at the nearest negatives.
        queue: pictures that are remembered, the support set.
        hidden: width of the hidden layers of projector and predictor.
        outputs: width of the space in which views are compared.
        smallest_crop: least share of the picture's area that a view shows, 0 to 1.
        jitter: strength of the colour jitter; 1 is SimCLR's, 0 none.
        grayscale: chance of a view without colour.
        blur: chance of a blurred view.
        flip: chance of a mirrored view; 0 for writing and other things that have a side.
    """

    training_only = ("support",)

    def __init__(
        self,
        backbone: Backbone,
        temperature: Positive = 0.1,
        queue: Count = 4096,
        hidden: Count = 512,
        outputs: Count = 128,
        smallest_crop: Share = 0.2,
        jitter: Weight = 0.5,
        grayscale: Share = 0.2,
        blur: Share = 0.5,
        flip: Share = 0.5,
    ):
        super().__init__(backbone)
        self.temperature = temperature
        self.smallest_crop, self.flip = smallest_crop, flip
        self.jitter, self.grayscale, self.blur = jitter, grayscale, blur
        self.projector = projector(backbone.num_features, hidden, outputs, layers=3)
        self.predictor = mlp(outputs, hidden, outputs)
        self.support = Queue(queue, outputs)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Two independent views, each (B, C, H, W)."""
        return self._view(batch["image"]), self._view(batch["image"])

    def _view(self, image: Tensor) -> Tensor:
        return simclr_view(
            image,
            self.backbone.size,
            scale=(self.smallest_crop, 1.0),
            jitter=self.jitter,
            grayscale=self.grayscale,
            blur=self.blur,
            flip=self.flip,
        )

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        z = self.projector(self.backbone.pool(torch.cat(views)))
        (first, second), (guess_first, guess_second) = z.chunk(2), self.predictor(z).chunk(2)
        remembered = self.support.read()
        (friend_first, near), (friend_second, _) = nearest(first, remembered), nearest(second, remembered)
        loss = (
            contrast(friend_first, guess_second, self.temperature)
            + contrast(friend_second, guess_first, self.temperature)
        ) / 2
        self.support.push(first.detach())
        return TaskOutput(loss, {"nearness": near.mean()})

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures, and below each its nearest friend among the others of the batch."""
        image = batch["image"]
        z = normalized(self.projector(self.backbone.pool(to_float(image))))
        friend = (z @ z.T).fill_diagonal_(-torch.inf).argmax(1)
        return {"friends": rows_of(image[:8], image[friend[:8]])}


@torch.no_grad()
def nearest(z: Tensor, remembered: Tensor) -> tuple[Tensor, Tensor]:
    """For each of z (B, D) the row of `remembered` (Q, D), of length 1, that it is most like, (B, D), and their cosine,
    (B,).
    """
    with torch.autocast(z.device.type, enabled=False):
        z = normalized(z)
        cosine, which = (z @ remembered.to(z.dtype).T).max(1)
        return remembered[which].to(z.dtype), cosine


def contrast(friend: Tensor, guess: Tensor, temperature: float) -> Tensor:
    """(B, D) and (B, D) -> scalar: each friend picks out the guess for its own picture among those for the pictures of
    all ranks (paper, equation 2). No gradient goes into `friend`.
    """
    with torch.autocast(guess.device.type, enabled=False):
        friend, guess = gather(normalized(friend.detach())), gather(normalized(guess))
        return F.cross_entropy(friend @ guess.T / temperature, torch.arange(len(guess), device=guess.device))

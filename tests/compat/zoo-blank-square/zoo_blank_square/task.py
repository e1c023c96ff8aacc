"""Hide a square of each picture and let the network guess its mean colour from what is around it.

    picture, a square of it blanked --> backbone --> pool --> linear head --> guess (B, C) --+--> squared error
    the square's mean colour ...............................................................>+

The simplest relative of Pathak et al. 2016, "Context Encoders: Feature Learning by Inpainting", https://arxiv.org/abs/1604.07379

Differs: only the mean colour of the hidden square is predicted, where the paper paints all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.ranges import Part, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask, TaskOutput
from zoo.views import random_resized_crop


@register_task("blank-square")
class BlankSquareTask(PretextTask):
    """Regression of the mean colour of a hidden square.

    Args:
        hidden: side of the square as a share of the picture's, above 0 and below 1.
        smallest_crop: least share of the picture's area that is shown, 0 to 1.
        flip: chance of a mirrored picture.
    """

    # What defines the task, as plain values with defaults: a recipe's `task` group is this signature. A number's annotation says its range
    # too: those of zoo.ranges, or Annotated[float, Range(0, below=1)]. What lies outside has been refused before this runs.
    def __init__(self, backbone: Backbone, hidden: Part = 0.4, smallest_crop: Share = 0.5, flip: Share = 0.5):
        super().__init__(backbone)
        self.side = round(hidden * backbone.size)
        if not 0 < self.side < backbone.size:
            raise ZooError(f"task.hidden is {hidden}, which hides {self.side} of {backbone.size} pixels; some have to be seen and some hidden")
        self.smallest_crop, self.flip = smallest_crop, flip
        self.head = nn.Linear(backbone.num_features, backbone.channels)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """All that is random: the picture with its square blanked (B, C, H, W), and the square's mean colour (B, C), in [0, 1]."""
        image = random_resized_crop(batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        image = image.expand(-1, self.backbone.channels, -1, -1)                # grey pictures as the backbone sees them
        mask = self.squares(len(image), image.device)
        colour = (image * mask).sum((2, 3)) / self.side**2
        return torch.where(mask, torch.full_like(image, 0.5), image), colour

    def squares(self, batch: int, device: torch.device) -> Tensor:
        """(B, 1, H, W), True inside a square at a random place, another for each picture."""
        size = self.backbone.size
        top, left = torch.randint(0, size - self.side + 1, (2, batch, 1), device=device)
        pixel = torch.arange(size, device=device)
        rows, columns = ((pixel >= start) & (pixel < start + self.side) for start in (top, left))
        return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        """Nothing random here, and the loss in float32 whatever autocast says."""
        seen, colour = views
        guessed = self.head(self.backbone.pool(seen)).float()                   # (B, C)
        with torch.autocast(seen.device.type, enabled=False):
            loss = (guessed - colour).square().mean()
        return TaskOutput(loss, {"error": (guessed.detach() - colour).abs().mean()})

    @torch.no_grad()
    def picture(self, batch: dict) -> dict[str, Tensor]:
        """What the network saw, and the same with the guessed colour in the square."""
        image = batch["image"][:8]
        seen, _ = self.views({"image": image})
        guessed = self.head(self.backbone.pool(seen)).float()[:, :, None, None].expand_as(seen)
        hidden = (seen == 0.5).all(1, keepdim=True)
        return {"guess": rows_of(seen, torch.where(hidden, guessed, seen).clamp(0, 1))}

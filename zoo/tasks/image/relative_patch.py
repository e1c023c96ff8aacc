"""Show the network two patches of a picture and let it tell where the second lies from the first: it has to know the
parts of things.

              +--> central patch --> backbone --> pool --+
    image ----+                                          +--> joined --> head --> where it lies, one
              +--> a neighbour ----> backbone --> pool --+    of 8 places: cross-entropy

Doersch, Gupta, Efros 2015, "Unsupervised Visual Representation Learning by Context Prediction",
https://arxiv.org/abs/1505.05192

Differs: of each picture one central patch is drawn and asked for with all eight of its neighbours, where the paper
draws pairs.
Differs: patches of small pictures are enlarged, so that backbones made for whole pictures have something to look at;
and they aren't shrunk and blown up again by chance, of which small pictures would leave nothing.
Differs: one hidden layer stands on the two patches, where the paper has two.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.heads import mlp
from zoo.losses import wide
from zoo.ranges import Count, Part, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import crop_resize, random_resized_crop, to_float

STEPS = tuple(
    (row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)
)  # to the 8 neighbours, as read
FRINGES = (-1.0, 2.0, -1.0)  # green against magenta, the colours that a lens pulls apart


@register_task("relative-patch")
class RelativePatch(PretextTask):
    """Classification of where a neighbouring patch lies, of eight places.

    Args:
        patch: side of a patch as a share of the picture's.
        gap: distance between neighbours before jitter, in sides of a patch but at least a pixel, so that lines don't
            run from one into the other.
        jitter: how far each neighbour is moved at most, up or down, left or right, in sides of a patch; it eats into
            the gap and, in pixels, is at most that.
        colour: what keeps the network from reading places off the colour fringes of lenses: drop leaves one random
            channel of each patch and puts faint noise for the others, project takes the axis from green to magenta out
            of the colours, keep does nothing.
        tile: pixels along a side of a patch as the backbone sees it.
        hidden: width of the hidden layer that sees both patches.
        smallest_crop: least share of the picture's area that patches are cut from, 0 to 1.
        flip: chance of a mirrored picture.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch: Part = 0.25,
        gap: Weight = 0.25,
        jitter: Weight = 0.15,
        colour: Literal["drop", "project", "keep"] = "drop",
        tile: Count = 16,
        hidden: Count = 512,
        smallest_crop: Share = 0.6,
        flip: Share = 0.5,
    ):
        self.side, self.gap = round(patch * backbone.size), max(1, round(gap * patch * backbone.size))
        self.jitter = round(jitter * self.side)
        self.check_places(backbone.size)
        backbone.require_size(tile, "task.tile")
        super().__init__(backbone)
        self.colour, self.tile, self.smallest_crop, self.flip = colour, tile, smallest_crop, flip
        self.head = mlp(2 * backbone.num_features, hidden, len(STEPS))

    def check_places(self, size: int) -> None:
        """Raises ZooError unless nine patches, gaps and jitter fit into a picture of `size` pixels and none shares a
        pixel with the centre.
        """
        needed = 3 * self.side + 2 * self.gap + 2 * self.jitter
        if self.side < 2 or needed > size:
            raise ZooError(
                f"three patches of {self.side} pixels, gaps of {self.gap} and jitter of {self.jitter} to both sides "
                f"need {needed} pixels, "
                f"and the picture has {size}; patches have at least 2, and task.patch, task.gap and task.jitter say "
                "how much they take"
            )
        if self.jitter > self.gap:
            raise ZooError(
                f"task.jitter moves neighbours by up to {self.jitter} pixels, over the gap of {self.gap} and into the "
                "central patch; "
                f"take a smaller task.jitter or a larger task.gap (both are in sides of a patch, here {self.side} "
                "pixels)"
            )

    def views(self, batch: dict) -> tuple[Tensor]:
        """Of each picture the central patch and its eight neighbours in the order of STEPS, (B, 9, C, h, w)."""
        return (self.guarded(self.cut(batch["image"])),)

    def cut(self, image: Tensor) -> Tensor:
        """Patches (B, 9, C, h, w) in [0, 1], the central one first."""
        size, pitch = self.backbone.size, self.side + self.gap
        image = random_resized_crop(image, size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        margin = pitch + self.jitter  # what a centre needs on each side
        centre = torch.randint(margin, size - self.side - margin + 1, (2, len(image), 1), device=image.device)
        step = torch.tensor([(0, 0), *STEPS], device=image.device).T.unsqueeze(1) * pitch  # (2, 1, 9): down and right
        moved = torch.randint(-self.jitter, self.jitter + 1, (2, len(image), len(STEPS)), device=image.device)
        corner = centre + step + F.pad(moved, (1, 0))  # the centre stays
        top, left = corner.flatten(1).to(image.dtype)
        sides = torch.full_like(top, self.side)
        return crop_resize(image.repeat_interleave(9, 0), top, left, sides, sides, self.tile).unflatten(0, (-1, 9))

    def guarded(self, patches: Tensor) -> Tensor:
        """Patches (B, 9, C, h, w) without colour fringes; grey ones have none."""
        if patches.shape[2] == 1 or self.colour == "keep":
            return patches
        if self.colour == "project":
            axis = patches.new_tensor(FRINGES)
            return patches - torch.einsum("bnchw,c,d->bndhw", patches, axis, axis) / axis.square().sum()
        kept = torch.randint(3, patches.shape[:2], device=patches.device)
        kept = F.one_hot(kept, 3).bool()[..., None, None]  # (B, 9, 3, 1, 1)
        noise = torch.randn_like(patches) * (patches * kept).sum(2, keepdim=True).std((3, 4), keepdim=True) / 100
        return torch.where(
            kept, patches, self.backbone.shift + noise
        )  # around what the backbone's normalisation makes zero

    def forward(self, views: tuple[Tensor]) -> TaskOutput:
        (patches,) = views
        logits = wide(self.compare(patches))  # (B, 8, 8)
        place = torch.arange(len(STEPS), device=patches.device).expand(len(patches), -1)
        with torch.autocast(patches.device.type, enabled=False):
            loss = F.cross_entropy(logits.flatten(0, 1), place.flatten())
        return TaskOutput(loss, {"accuracy": (logits.argmax(2) == place).float().mean()})

    def compare(self, patches: Tensor) -> Tensor:
        """(B, 9, C, h, w) -> (B, 8, 8): for each neighbour, how likely it lies in each of the eight places from the
        centre.
        """
        seen = self.backbone.pool(patches.flatten(0, 1)).unflatten(0, (len(patches), -1))  # (B, 9, D)
        pairs = torch.cat([seen[:, :1].expand_as(seen[:, 1:]), seen[:, 1:]], 2)
        return self.head(pairs.flatten(0, 1)).unflatten(0, (len(patches), -1))

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures; a central patch, with its neighbours where they belong; and with each where the network thinks it
        likeliest.
        """
        image = to_float(batch["image"][:8])
        patches = self.cut(image)
        right = torch.arange(len(STEPS), device=image.device).expand(len(image), -1)
        believed = self.compare(self.guarded(patches)).argmax(2)
        return {"neighbours": rows_of(image, self.laid(patches, right), self.laid(patches, believed))}

    def laid(self, patches: Tensor, place: Tensor) -> Tensor:
        """(B, 9, C, h, w) and places 0..7 (B, 8) of the neighbours -> (B, C, H, W); of two in one place the later is
        seen; empty places are black.
        """
        pitch = self.tile + 1
        canvas = patches.new_zeros(len(patches), patches.shape[2], 3 * pitch - 1, 3 * pitch - 1)
        for one, where, out in zip(patches, place.tolist(), canvas, strict=True):
            for patch, (row, column) in zip(one, [(0, 0), *(STEPS[index] for index in where)], strict=True):
                out[:, (row + 1) * pitch :, (column + 1) * pitch :][:, : self.tile, : self.tile] = patch
        return canvas

"""Cut a picture into tiles, shuffle them, and let the network tell how they were shuffled: it has to know what belongs
where.

              +--> tile 1 --> backbone --> pool --+
    image ----+--> ...                            +--> joined --> head --> which of K orders:
              +--> tile N --> backbone --> pool --+    in order            cross-entropy

    the N tiles are shuffled by one of K permutations

Noroozi, Favaro 2016, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles",
https://arxiv.org/abs/1603.09246

Differs: permutations are chosen greedily by their least distance to those already chosen and only then by the sum that
the paper's algorithm looks at, and begin with the order itself instead of a random one; 64 of nine tiles then differ in
7 places or more, where the sum alone leaves some that differ in 2.
Differs: tiles of small pictures are enlarged, so that backbones made for whole pictures have something to look at.
Differs: colour fringes are guarded against by grey pictures alone, without shifting the channels against each other.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.heads import mlp
from zoo.losses import wide
from zoo.ranges import Count, Fraction, Several, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import crop_resize, random_grayscale, random_resized_crop

MOST = 100_000  # permutations to choose from where there are too many to list


@register_task("jigsaw")
class Jigsaw(PretextTask):
    """Classification of the permutation of a picture's tiles.

    Args:
        grid: tiles along each side, at least 2; there are grid * grid.
        permutations: how many orders there are to tell apart, at least 2.
        gap: share of a cell's side that its tile leaves free, 0 to below 1; the tile lies anywhere in its cell, so that
            edges don't meet.
        tile: pixels along a side of a tile as the backbone sees it.
        normalize: give each tile mean 0 and deviation 1, so that neighbours aren't known by their brightness.
        embedding: numbers that a tile is described by before the tiles are put together.
        hidden: width of the hidden layer that sees all tiles.
        grayscale: chance of a picture without colour.
        smallest_crop: least share of the picture's area that is cut into tiles, 0 to 1.
        flip: chance of a mirrored picture.
    """

    def __init__(
        self,
        backbone: Backbone,
        grid: Several = 3,
        permutations: Several = 64,
        gap: Fraction = 0.25,
        tile: Count = 16,
        normalize: bool = True,
        embedding: Count = 64,
        hidden: Count = 512,
        grayscale: Share = 0.3,
        smallest_crop: Share = 0.6,
        flip: Share = 0.5,
    ):
        most = math.factorial(grid**2) if grid < 4 else MOST
        if permutations > most:
            raise ZooError(
                f"task.permutations is {permutations:,}, and a puzzle of {grid} x {grid} tiles (task.grid) is given "
                f"at most {most:,}"
            )
        self.check_gap(backbone.size, grid, gap)
        backbone.require_size(tile, "task.tile")
        super().__init__(backbone)
        self.grid, self.gap, self.tile, self.normalize = grid, gap, tile, normalize
        self.grayscale, self.smallest_crop, self.flip = grayscale, smallest_crop, flip
        self.register_buffer(
            "orders", torch.from_numpy(distant_permutations(grid**2, permutations)), persistent=False
        )  # (K, N)
        self.embed = nn.Sequential(nn.Linear(backbone.num_features, embedding), nn.ReLU(inplace=True))
        self.head = mlp(grid**2 * embedding, hidden, permutations)

    @staticmethod
    def check_gap(size: int, grid: int, gap: float) -> None:
        """Raises ZooError unless tiles of some pixels are left."""
        if round((1 - gap) * (size // grid)) < 2:
            raise ZooError(
                f"task.gap is {gap}, which leaves no tiles of 2 pixels or more in cells of {size // grid} (data.size "
                f"{size}, "
                f"task.grid {grid}); take a smaller gap or grid, or larger pictures"
            )

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """The shuffled tiles (B, N, C, h, w) and which of the K permutations it was (B,)."""
        tiles, which = self.shuffled(batch["image"])
        return self.levelled(tiles), which

    def shuffled(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles in [0, 1], (B, N, C, h, w), of which the n-th in the K-th order is tile orders[K, n]; and each
        picture's order (B,).
        """
        size, cell = self.backbone.size, self.backbone.size // self.grid
        image = random_grayscale(
            random_resized_crop(image, size, scale=(self.smallest_crop, 1.0), flip=self.flip), self.grayscale
        )
        image = self.backbone.repeated(image)
        side = round((1 - self.gap) * cell)
        which = torch.randint(len(self.orders), (len(image),), device=image.device)
        place = self.orders[which].flatten()  # (B N,): where in the picture each tile is from
        corner = torch.stack([place // self.grid, place % self.grid]) * cell + (size - self.grid * cell) // 2
        top, left = (corner + torch.randint(0, cell - side + 1, corner.shape, device=image.device)).float()
        sides = torch.full_like(top, side)
        tiles = crop_resize(image.repeat_interleave(self.grid**2, 0), top, left, sides, sides, self.tile)
        return tiles.unflatten(0, (-1, self.grid**2)), which

    def levelled(self, tiles: Tensor) -> Tensor:
        """Tiles that, when the backbone has normalised them as it does all pictures, have mean 0 and deviation 1 in
        every channel.
        """
        if not self.normalize:
            return tiles
        deviation, mean = torch.std_mean(tiles, (3, 4), keepdim=True, correction=0)
        return (tiles - mean) / deviation.clamp(
            min=0.02
        ) * self.backbone.scale + self.backbone.shift  # flat tiles stay flat

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        tiles, which = views
        logits = wide(self.solve(tiles))
        with torch.autocast(tiles.device.type, enabled=False):
            loss = F.cross_entropy(logits, which)
        return TaskOutput(loss, {"accuracy": (logits.argmax(1) == which).float().mean()})

    def solve(self, tiles: Tensor) -> Tensor:
        """(B, N, C, h, w) -> (B, K): each tile through the same backbone, and all that is known of them side by side
        into the head.
        """
        described = self.embed(self.backbone.pool(tiles.flatten(0, 1)))  # (B N, embedding)
        return self.head(described.unflatten(0, (len(tiles), -1)).flatten(1))

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Puzzles as the network gets them, as it solves them, and as they are."""
        tiles, which = self.shuffled(batch["image"][:8])
        believed = self.solve(self.levelled(tiles)).argmax(1)
        solved, right = (self.laid(self.sorted(tiles, self.orders[order])) for order in (believed, which))
        return {"puzzles": rows_of(self.laid(tiles), solved, right)}

    def sorted(self, tiles: Tensor, order: Tensor) -> Tensor:
        """Tiles (B, N, ...) that lie in an order (B, N), each put to its place."""
        index = order.argsort(1).view(*order.shape, 1, 1, 1).expand_as(tiles)
        return tiles.gather(1, index)

    def laid(self, tiles: Tensor) -> Tensor:
        """(B, N, C, h, w) -> (B, C, H, W), the tiles row by row with a pixel between them."""
        framed = F.pad(tiles, (0, 1, 0, 1)).unflatten(1, (self.grid, self.grid))  # (B, row, column, C, h, w)
        return framed.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)[..., :-1, :-1]


@functools.cache
def distant_permutations(tiles: int, count: int) -> np.ndarray:
    """`count` permutations of 0 .. tiles - 1, int64 (count, tiles), far from each other in Hamming distance; always the
    same.

    Each is the one whose least distance to those before it is largest; of equal ones, the one with the largest sum of
    distances. They are chosen of all permutations up to nine tiles, and of many random ones beyond. (A choice by the
    least distance is in the paper's Algorithm 1 only through the sum.)
    """
    if tiles <= 9:
        pool = np.array(list(itertools.permutations(range(tiles))), dtype=np.uint8)
    else:
        pool = np.random.RandomState(0).rand(MOST, tiles).argsort(1).astype(np.uint8)
    chosen, summed, least = [0], np.zeros(len(pool), dtype=np.int64), np.full(len(pool), tiles + 1)
    while len(chosen) < count:
        distance = (pool != pool[chosen[-1]]).sum(1)
        summed += distance
        least = np.minimum(least, distance)  # 0 of those that are chosen
        chosen.append(int((least * (tiles * count + 1) + summed * (least > 0)).argmax()))
    return pool[chosen].astype(np.int64)

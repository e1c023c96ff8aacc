"""Sort what the network makes of pictures into clusters, take the clusters for classes, learn to tell them, and now and
then sort again.

              +--> view 1 --> backbone --> pool --> projector --> z1 --+
    image ----+                                                        +--> cosines to K centroids
              +--> view 2 --> backbone --> pool --> projector --> z2 --+          |
                                                                                  v
    memory of the last z1 ..> k-means, now and then ..> centroids (K, D)    cross-entropy with the
                                                                            centroid nearest to the
                                                                            other view

Caron, Bojanowski, Joulin, Douze 2018, "Deep Clustering for Unsupervised Learning of Visual Features",
https://arxiv.org/abs/1807.05520, with the spherical k-means, the projector and the views of DeepCluster-v2,
https://arxiv.org/abs/2006.09882 (appendix D)

Differs: what is clustered are the last `memory` pictures that were seen, every `every` batches, rather than all of them
at each epoch.
Differs: a picture's cluster is looked up when it is seen, as the one of its other view, rather than kept from the last
clustering.
Differs: k-means goes on from the clusters of before, so that most classes keep their meaning and the classifier need
not start afresh.
Differs: a BatchNorm at the projector's end takes the place of whitening. What it is worth hasn't been measured by
itself: short runs without it, with a memory set otherwise too, came out below the untrained network (recipes/LOG.md).
Differs: rare clusters weigh more in the loss, instead of being drawn more often, which the paper says is the same.
Differs: one clustering, where DeepCluster-v2 has three at once, and weaker colour jitter by default.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.heads import Queue, projector
from zoo.losses import gather, normalized, total
from zoo.ranges import Count, Positive, Several, Share, Weight
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import simclr_view, to_float


@register_task("deepcluster")
class DeepCluster(PretextTask):
    """Classification of views into the clusters of a k-means over remembered features, which is done again every so
    many batches.

    Until the memory has filled for the first time, clusters are around random directions.

    Args:
        clusters: of the k-means, at least 2.
        memory: pictures that are remembered and clustered, at least as many as clusters.
        every: batches from one clustering to the next; they are steps where gradients aren't accumulated.
        iterations: of k-means, each time.
        temperature: softness of the classification, above 0.
        hidden: width of the projector's hidden layer.
        outputs: width of the space in which clusters lie.
        smallest_crop: least share of the picture's area that a view shows, 0 to 1.
        jitter: strength of the colour jitter; 1 is SimCLR's, 0 none.
        grayscale: chance of a view without colour.
        blur: chance of a blurred view.
        flip: chance of a mirrored view; 0 for writing and other things that have a side.
    """

    training_only = ("remembered", "pushed", "batches")

    def __init__(
        self,
        backbone: Backbone,
        clusters: Several = 64,
        memory: Count = 2048,
        every: Count = 10,
        iterations: Count = 10,
        temperature: Positive = 0.1,
        hidden: Count = 512,
        outputs: Count = 128,
        smallest_crop: Share = 0.2,
        jitter: Weight = 0.5,
        grayscale: Share = 0.2,
        blur: Share = 0.5,
        flip: Share = 0.5,
    ):
        super().__init__(backbone)
        if clusters > memory:
            raise ZooError(
                f"task.clusters is {clusters} and task.memory {memory}; there have to be as many pictures to fill them"
            )
        self.every, self.iterations, self.temperature = every, iterations, temperature
        self.smallest_crop, self.flip = smallest_crop, flip
        self.jitter, self.grayscale, self.blur = jitter, grayscale, blur
        self.projector = projector(backbone.num_features, hidden, outputs)
        self.remembered = Queue(memory, outputs)
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))  # pictures, over all ranks
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))  # since the last clustering
        self.register_buffer("centroids", normalized(torch.randn(clusters, outputs)))
        self.register_buffer("sizes", torch.zeros(clusters))  # remembered pictures in each, 0 before the first

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
        z = normalized(self.projector(self.backbone.pool(torch.cat(views))))  # (2 B, D)
        with torch.autocast(z.device.type, enabled=False):
            cosines = z @ self.centroids.clone().T  # (2 B, K); the backward pass needs these
            first, second = cosines.detach().argmax(1).chunk(2)
            loss = weighted_cross_entropy(
                cosines / self.temperature, torch.cat([second, first]), 1 / self.sizes.clamp(min=1)
            )
        used = gather(first).unique().numel() / len(self.sizes)
        if self.training:
            self._remember(z[: len(first)].detach())
        return TaskOutput(loss, {"agreement": (first == second).to(z.dtype).mean(), "used": z.new_tensor(used)})

    def _remember(self, z: Tensor) -> None:
        """(B, D) of each rank go into the memory, which is the same on all of them; when it is time, it is
        clustered.
        """
        self.remembered.push(z)
        self.pushed += int(total(self.pushed.new_tensor(len(z))))
        self.batches += 1
        rows, first_time = self.remembered.rows, not self.sizes.any()
        if self.pushed >= len(rows) and (first_time or self.batches >= self.every):
            spaced = torch.arange(len(self.sizes), device=rows.device) * len(rows) // len(self.sizes)
            centroids, sizes = spherical_kmeans(rows, rows[spaced] if first_time else self.centroids, self.iterations)
            self.centroids.copy_(centroids), self.sizes.copy_(sizes)
            self.batches.zero_()

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """In each row the pictures of the batch that lie nearest to one of its fullest clusters."""
        image = to_float(batch["image"])
        cosines = normalized(self.projector(self.backbone.pool(image))) @ self.centroids.T  # (B, K)
        fullest = cosines.argmax(1).bincount(minlength=cosines.shape[1]).topk(min(8, cosines.shape[1])).indices
        nearest = cosines[:, fullest].topk(min(8, len(image)), dim=0).indices  # (8, clusters)
        return {"clusters": rows_of(*[image[which] for which in nearest.T])}


def weighted_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """(B, K) logits, (B,) classes and the weight (K,) of each class -> scalar: the weighted mean over the rows of all
    ranks.
    """
    each = weight.to(logits.dtype)[target]
    return total((each * F.cross_entropy(logits, target, reduction="none")).sum()) / total(each.sum())


@torch.no_grad()
def spherical_kmeans(rows: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Rows (n, D) and first centroids (K, D), all of length 1 -> centroids (K, D) and the rows (K,) for which each is
    the nearest.

    A row belongs to the centroid of largest cosine, of equals to the first; a centroid points where the sum of its rows
    points. One
    without rows moves to a row that is far from its own: nothing is drawn, and every rank finds the same.
    """
    for _ in range(iterations):
        cosine, nearest = (rows @ centroids.T).max(1)
        one_hot = F.one_hot(nearest, len(centroids)).to(rows.dtype)  # (n, K)
        sums, empty = one_hot.T @ rows, (one_hot.sum(0) == 0).nonzero()[:, 0]
        furthest = cosine.argsort(stable=True)[torch.arange(len(empty), device=rows.device) % len(rows)]
        centroids = normalized(sums.index_copy(0, empty, rows[furthest]))
    nearest = (rows @ centroids.T).argmax(1)
    return centroids, nearest.bincount(minlength=len(centroids)).to(rows.dtype)

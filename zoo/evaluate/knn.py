"""Exact nearest neighbours: which training images lie nearest, and how they vote.

Wu, Xiong, Yu, Lin 2018 (the weighted vote), https://arxiv.org/abs/1805.01978; Caron et al. 2021 (as a measure of
representations), https://arxiv.org/abs/2104.14294

The search is one float32 matrix product per block of queries. Its best candidates are scored again in float64, and a
query whose candidates could have missed a neighbour by rounding is searched again in float64, so that the result
doesn't depend on block size, threads or instruction set. Memory is that of one block, whatever the number of queries.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.evaluate.rank import check_features

NEIGHBOURS = (1, 5, 10, 20, 50)  # what the validation split chooses from
BLOCK = 1 << 24  # similarities held at once: 64 MB
SPARE = 12  # candidates beyond k, so that rounding rarely needs the second search

Metric = Literal["cosine", "euclidean"]
Vote = Literal["weighted", "majority"]


def knn(
    train_x: Tensor,
    train_y: Tensor,
    x: Tensor,
    k: int = 20,
    classes: int | None = None,
    metric: Metric = "cosine",
    vote: Vote = "weighted",
    temperature: float = 0.07,
) -> Tensor:
    """Predicted labels int64 (n,) of features `x` (n, D), by a vote of the k nearest of `train_x` (N, D) with labels
    `train_y` (N,).

    Args:
        k: neighbours, 1 to N.
        classes: number of classes; by default the largest label + 1.
        metric: cosine similarity, or Euclidean distance.
        vote: "weighted" counts a neighbour exp(similarity / temperature), cosine only; "majority" counts each as one.
        temperature: above 0; lower trusts the nearest more.

    With "majority" it equals scikit-learn's KNeighborsClassifier. Ties: of equally near images the one that comes first
    in `train_x` is nearer; of equally voted classes the smaller label wins.
    Raises ZooError for features that aren't finite, k outside 1..N, and labels that don't fit.
    """
    score, index = neighbours(train_x, x, k, metric)
    return count_votes(score, _labels(train_x, train_y, classes)[index], classes, metric, vote, temperature)


def neighbours(
    train_x: Tensor, x: Tensor, k: int, metric: Metric = "cosine", block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Scores float64 (n, k) and rows int64 (n, k) of the k nearest of `train_x` (N, D) to each of `x` (n, D), nearest
    first.

    The score is the cosine similarity, or minus the squared distance. A vector of zeros has similarity 0 to everything.
    """
    check_features(train_x, "the training features"), check_features(x)
    if train_x.shape[1] != x.shape[1]:
        raise ZooError(
            f"training features have {train_x.shape[1]} numbers per image and the others {x.shape[1]}; they come from "
            "different models"
        )
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(train_x):
        raise ZooError(
            f"k is {k!r} and there are {len(train_x):,} training features; choose k from 1 to {len(train_x):,}"
        )
    if metric not in ("cosine", "euclidean"):
        raise ZooError(f"the metric {metric!r} is unknown; known: cosine, euclidean")
    search, rows, x = _Search(train_x, metric), max(1, block // len(train_x)), x.to(train_x.device)
    found = [search.quickly(part, k) for part in x.split(rows)]
    score, index, unsure = (torch.cat(parts) for parts in zip(*found, strict=True))
    again = unsure.nonzero()[:, 0]
    if len(again):
        score[again], index[again] = search.surely(x[again], k, max(1, rows // 4))
    return score, index


def count_votes(
    score: Tensor,
    labels: Tensor,
    classes: int | None = None,
    metric: Metric = "cosine",
    vote: Vote = "weighted",
    temperature: float = 0.07,
) -> Tensor:
    """Predictions int64 (n,) from the neighbours' scores (n, k) and labels (n, k); see `knn`."""
    if vote == "majority":
        weight = torch.ones_like(score, dtype=torch.float64)
    elif vote != "weighted" or metric != "cosine":
        raise ZooError(
            f"the vote {vote!r} doesn't go with the metric {metric!r}; use weighted or majority with cosine, majority "
            "with euclidean"
        )
    elif not temperature > 0:
        raise ZooError(f"the temperature is {temperature}; it has to be above 0")
    else:
        weight = ((score - score[:, :1]) / temperature).double().exp()  # relative to the nearest: no overflow
    classes = int(labels.max()) + 1 if classes is None else classes
    votes = torch.zeros(len(score), classes, dtype=torch.float64, device=score.device).scatter_add_(1, labels, weight)
    return votes.argmax(1)  # the first of equal ones


def choose_k(
    train_x: Tensor,
    train_y: Tensor,
    x: Tensor,
    y: Tensor,
    classes: int | None = None,
    among: tuple[int, ...] = NEIGHBOURS,
) -> tuple[int, dict[int, float]]:
    """The k whose weighted cosine vote is right most often on validation features, and the percentage of each k that
    was tried.

    Those above N are left out (if all are, N is tried). The smallest of equally good ones is chosen.
    """
    tried = sorted({k for k in among if k <= len(train_x)}) or [len(train_x)]
    score, index = neighbours(train_x, x, tried[-1])
    labels = _labels(train_x, train_y, classes)[index]
    right = {k: accuracy(count_votes(score[:, :k], labels[:, :k], classes), y) for k in tried}
    return max(tried, key=lambda k: (right[k], -k)), right


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Percent of predictions (n,) that equal labels (n,)."""
    return 100.0 * float((predictions == labels.to(predictions.device)).double().mean())


def _labels(train_x: Tensor, train_y: Tensor, classes: int | None) -> Tensor:
    train_y = train_y.to(train_x.device).long()
    if train_y.shape != train_x.shape[:1]:
        raise ZooError(
            f"there are {len(train_x):,} training features and labels of the shape {tuple(train_y.shape)}; "
            "one label per feature is needed"
        )
    least, most = int(train_y.min()), int(train_y.max())
    if least < 0 or (classes is not None and most >= classes):
        raise ZooError(f"labels run from {least} to {most}; they have to lie in 0..{(classes or most + 1) - 1}")
    return train_y


class _Search:
    """Nearest rows of one bank. Rank is by similarity, or by q.b - |b|^2 / 2, which orders as minus the distance
    does.
    """

    def __init__(self, bank: Tensor, metric: Metric):
        self.bank, self.cosine = bank, metric == "cosine"
        if self.cosine:
            self.fast = torch.nn.functional.normalize(bank.double(), dim=1).float()
            self.offset, longest = None, 1.0
        else:
            self.middle = bank.double().mean(0)  # distances don't mind, and rounding is smaller
            self.fast = (bank - self.middle).float()
            self.offset = self.fast.double().square().sum(1).div(2).float()
            longest = float((2 * self.offset.max()).sqrt())
        self.longest = longest

    def quickly(self, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (n, k), rows (n, k), and whether rounding may have hidden a neighbour (n,)."""
        wanted = min(k + SPARE, len(self.bank))
        query, rank = self._rank(x)
        best, index = rank.topk(wanted, sorted=True)
        score = self._score(x, index)
        score, index = _ordered(score, index)
        if wanted == len(self.bank):
            return score[:, :k], index[:, :k], torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return score[:, :k], index[:, :k], self._unsure(query, best[:, -1], score[:, k - 1], x)

    def surely(self, x: Tensor, k: int, rows: int) -> tuple[Tensor, Tensor]:
        """Scores and rows (n, k) by a search in float64, with ties at the k-th place in favour of the first rows.

        Equal rows are ranked once: where a row stands in a matrix product can change the last digit.
        """
        bank, place = torch.unique(self.bank, dim=0, return_inverse=True)
        bank = bank.double()
        offset = None if self.cosine else bank.square().sum(1) / 2
        if self.cosine:
            bank = torch.nn.functional.normalize(bank, dim=1)
        found = []
        for part in x.split(rows):
            query = torch.nn.functional.normalize(part.double(), dim=1) if self.cosine else part.double()
            rank = query @ bank.T
            rank = (rank.mul_(1e12).round_() if self.cosine else rank.sub_(offset))[:, place]
            kth = rank.topk(k).values[:, -1:]
            nearer, level = rank > kth, rank == kth
            room = k - nearer.sum(1, keepdim=True)
            index = (nearer | (level & (level.cumsum(1, dtype=torch.int32) <= room))).nonzero()[:, 1].view(len(part), k)
            found.append(_ordered(self._score(part, index), index))
        return torch.cat([score for score, _ in found]), torch.cat([index for _, index in found])

    def _rank(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.cosine:
            query = torch.nn.functional.normalize(x.double(), dim=1).float()
            return query, query @ self.fast.T
        query = (x - self.middle).float()
        return query, (query @ self.fast.T).sub_(self.offset)

    def _score(self, x: Tensor, index: Tensor) -> Tensor:
        """Float64 scores (n, m) of the given rows (n, m), the same for equal rows wherever they stand."""
        score = torch.empty(index.shape, dtype=torch.float64, device=x.device)
        step = max(1, (1 << 17) // (index.shape[1] * x.shape[1]))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            query, rows = x[part, None].double(), self.bank[index[part]].double()
            if self.cosine:
                size = (query.norm(dim=-1) * rows.norm(dim=-1)).clamp_(min=1e-300)
                score[part] = ((query * rows).sum(-1) / size).mul_(1e12).round_().div_(1e12)
            else:
                score[part] = -(query - rows).square_().sum(-1)
        return score

    def _unsure(self, query: Tensor, cut: Tensor, score: Tensor, x: Tensor) -> Tensor:
        """Queries (n,) for which a row outside the candidates, ranked at most `cut`, might be as near as the k-th one,
        `score`.

        A float32 dot product of D terms is off by at most about D * 2^-24 times the two lengths; a few terms more for
        the input's own rounding.
        """
        length = query.double().norm(dim=1)
        slack = (query.shape[1] + 8) * 2.0**-24 * (length * self.longest + (0 if self.cosine else self.longest**2))
        if self.cosine:
            kth = score
        else:
            kth = (score + (x - self.middle).square().sum(1)) / 2  # from minus distance to rank
        return cut.double() + slack >= kth


def _ordered(score: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest first, and of equals the first row first."""
    by_row = index.argsort(1)
    score, index = score.gather(1, by_row), index.gather(1, by_row)
    by_score = score.argsort(dim=1, descending=True, stable=True)
    return score.gather(1, by_score), index.gather(1, by_score)

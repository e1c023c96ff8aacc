"""The linear probe: multinomial logistic regression on frozen features, to its optimum.

The objective is scikit-learn's, divided by the number of images: the mean cross-entropy plus penalty / 2 times the
squared weights (bias free), so `penalty` is 1 / (C n). It is convex, so the optimum doesn't depend on how it is found.
Ours is found by L-BFGS (Nocedal 1980, https://doi.org/10.1090/S0025-5718-1980-0572855-7) in coordinates in which the
features are uncorrelated and the curvature is near 1, so that some tens of passes do for correlated features too. No
copy of the features is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.evaluate.knn import accuracy
from zoo.evaluate.rank import check_features

PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # strongest first: each fit starts from the one before
PATIENCE = 2  # weaker penalties in a row that do worse than the best, after which no weaker one is tried
ROUGH, FINE, EXACT = (
    1e-3,
    1e-6,
    1e-9,
)  # while choosing, for the probe, for fit_linear: about the root of how far the loss may
# lie above the optimum
NEVER = -1e4  # bias of a class that no training image has
ROWS = 2048  # features that are widened to float64 at once


@dataclass(frozen=True)
class Probe:
    """A fitted probe. `weight` (K, D) and `bias` (K,), float64, apply to features as they are: standardisation is
    folded in.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    tried: dict[float, float]  # validation percent of each penalty that was tried

    def logits(self, x: Tensor) -> Tensor:
        """Features (n, D) -> logits (n, K) float64."""
        return torch.cat([part.double() @ self.weight.T + self.bias for part in x.split(ROWS)])

    def predict(self, x: Tensor) -> Tensor:
        return self.logits(x).argmax(1)


def fit_linear(x: Tensor, y: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """The optimum (weight (K, D), bias (K,), float64) of logistic regression of labels y (n,) on features x (n, D) as
    they are.

    With 3 classes or more it is what scikit-learn's LogisticRegression(C=1 / (penalty * n)) converges to; with 2, where
    scikit-learn has one weight vector instead of two, what it converges to at twice that C. A class without any image
    gets zero weights and a bias that keeps it from being predicted; the others are fitted as if it weren't there.
    Raises ZooError for features that aren't finite, labels outside 0..K-1 and a penalty that isn't above 0.
    """
    return _Problem(x, y, classes, standardise=False).solve(penalty, EXACT)


def fit_probe(
    x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor, classes: int, penalties: tuple[float, ...] = PENALTIES
) -> Probe:
    """Logistic regression on features standardised by their own mean and deviation; the held-out images choose the
    penalty.

    x (n, D), y (n,) are fitted; held_x, held_y are a validation split. Penalties are tried from the strongest on, until
    two in a row do worse than the best; of equally good ones the strongest is taken.
    """
    penalties = tuple(sorted(penalties, reverse=True))
    if not penalties:
        raise ZooError("there is no penalty to choose from; give at least one, above 0")
    check_features(held_x, "the validation features")
    problem = _Problem(x, y, classes, standardise=True)
    tried, starts, best = {}, {}, penalties[0]
    for number, penalty in enumerate(penalties if len(penalties) > 1 else ()):
        weight, bias = problem.solve(penalty, ROUGH)
        tried[penalty], starts[penalty] = accuracy(Probe(weight, bias, penalty, {}).predict(held_x), held_y), problem.at
        best = max(tried, key=lambda penalty: (tried[penalty], penalty))
        # the weaker, the dearer; but strong ones may all say the commonest class alike, and only then begin to tell
        # classes apart
        if tried[best] == 100 or (number >= PATIENCE and max(list(tried.values())[-PATIENCE:]) < tried[best]):
            break
    problem.at = starts.get(best)
    weight, bias = problem.solve(best, FINE)
    probe = Probe(weight, bias, best, tried)
    tried[best] = accuracy(probe.predict(held_x), held_y)
    return probe


class _Problem:
    """One set of features and labels, made ready once for every penalty.

    Weights on features as they are W (C, D) come from free coordinates U (C, R) by W = U P', P = diag(1 / deviation) V
    S. V holds the orthonormal eigenvectors of the (standardised) covariance. Weights outside their span gain nothing
    and cost penalty, so R is at most min(n, D). S scales each so that the objective curves about equally in all.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int, standardise: bool):
        check_features(x, "the training features")
        y = y.to(x.device).long()
        if y.shape != x.shape[:1] or int(y.min()) < 0 or int(y.max()) >= classes:
            raise ZooError(
                f"one label in 0..{classes - 1} is needed for each of {len(x):,} features, and there are {len(y):,} "
                "labels "
                f"from {int(y.min())} to {int(y.max())}"
            )
        self.x, self.classes = x, classes
        self.present, self.y = torch.unique(y, return_inverse=True)
        self.mean, self.deviation = _moments(x)
        if not standardise:
            self.deviation = torch.ones_like(self.deviation)
        self.values, self.vectors = _spectrum(x, self.mean, self.deviation)
        self.at: tuple[Tensor, Tensor] | None = (
            None  # of the last solution: weights (C, D), logits of the mean image (C,)
        )

    def solve(self, penalty: float, tolerance: float) -> tuple[Tensor, Tensor]:
        """Weight (K, D) and bias (K,) for features as they are. Starts from `at`, and leaves the solution there."""
        if not 0 < penalty < float("inf"):
            raise ZooError(f"the penalty is {penalty}; it has to be a number above 0")
        count = len(self.present)
        curvature = max((count - 1) / count**2, 1e-3)  # of the loss at equal probabilities
        scale = (curvature * self.values + penalty).rsqrt()
        into = self.vectors * scale / self.deviation[:, None]
        free = self.vectors.new_zeros(count, len(scale) + 1)
        if self.at is not None:
            free[:, :-1], free[:, -1] = (
                (self.at[0] * self.deviation) @ self.vectors / scale,
                self.at[1] * curvature**0.5,
            )

        def objective(free: Tensor, dtype: torch.dtype) -> tuple[float, Tensor]:
            loss, slope, total = self._loss(free[:, :-1] @ into.T, free[:, -1] / curvature**0.5, dtype)
            small = free[:, :-1] * scale  # the standardised weights in the eigenvectors' coordinates
            gradient = torch.cat([slope @ into + penalty * small * scale, total[:, None] / curvature**0.5], 1)
            return loss + penalty / 2 * float(small.square().sum()), gradient

        if count > 1:
            if self.x.dtype != torch.float64:  # twice as fast, and does for most of the way
                free = _minimise(lambda at: objective(at, torch.float32), free, max(tolerance, ROUGH))
            if tolerance < ROUGH or self.x.dtype == torch.float64:
                free = _minimise(lambda at: objective(at, torch.float64), free, tolerance)
        self.at = free[:, :-1] @ into.T, free[:, -1] / curvature**0.5
        weight, bias = into.new_zeros(self.classes, len(into)), into.new_full((self.classes,), NEVER)
        weight[self.present], bias[self.present] = self.at[0], self.at[1] - self.at[0] @ self.mean
        return weight, bias

    def _loss(self, weight: Tensor, middle: Tensor, dtype: torch.dtype) -> tuple[float, Tensor, Tensor]:
        """Mean cross-entropy and its slopes by the weights (C, D) and by the logits of the mean image (C,), summed in
        float64.
        """
        narrow, bias, loss = weight.to(dtype), (middle - weight @ self.mean).to(dtype)[:, None], 0.0
        slope, total = torch.zeros_like(weight), torch.zeros_like(middle)
        for part, y in zip(self.x.split(ROWS), self.y.split(ROWS), strict=True):
            part = part.to(dtype)
            log = torch.addmm(bias, narrow, part.T).log_softmax(0)  # (C, n): this way round BLAS is fast
            loss -= float(log.gather(0, y[None]).sum(dtype=torch.float64))
            error = log.exp_().scatter_add_(0, y[None], log.new_full((1, len(y)), -1.0))
            slope += error @ part
            total += error.sum(1, dtype=torch.float64)
        slope -= total[:, None] * self.mean
        return loss / len(self.x), slope / len(self.x), total / len(self.x)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of features, float64; 1 where a feature is constant but for rounding."""
    mean = sum(part.double().sum(0) for part in x.split(ROWS)) / len(x)
    deviation = (sum((part.double() - mean).square().sum(0) for part in x.split(ROWS)) / len(x)).sqrt()
    return mean, torch.where(deviation > 1e-6 * (mean.abs() + deviation.max()), deviation, 1.0)


def _spectrum(x: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (R,) and eigenvectors (D, R) of the covariance of standardised features, R = min(n, D)."""
    if len(x) < x.shape[1]:
        rows = (x.double() - mean) / deviation
        basis = torch.linalg.qr(rows.T).Q  # spans the images, so nothing is lost in it
        inside = rows @ basis
        values, vectors = torch.linalg.eigh(inside.T @ inside / len(x))
        return values.clamp(min=0), basis @ vectors
    covariance = sum(part.T @ part for part in ((rows.double() - mean) / deviation for rows in x.split(ROWS))) / len(x)
    values, vectors = torch.linalg.eigh(covariance)
    return values.clamp(min=0), vectors


def _minimise(objective, at: Tensor, tolerance: float, memory: int = 100, steps: int = 1000) -> Tensor:
    """L-BFGS with a backtracking line search (Armijo), until the gradient's norm is at most `tolerance` or rounding
    stops it.

    scipy's L-BFGS-B takes as long and ends with gradients up to ten times larger, because its line search makes no
    allowance for rounding near the optimum.
    """
    value, gradient = objective(at)
    past: list[tuple[Tensor, Tensor, float]] = []
    for _ in range(steps):
        if float(gradient.norm()) <= tolerance:
            break
        direction = _direction(gradient, past)
        descent = float((direction * gradient).sum())
        if descent >= 0:  # only rounding can do this
            break
        step, found = 1.0 if past else min(1.0, 1.0 / float(gradient.norm())), None
        for _ in range(30):
            found = objective(at + step * direction)
            if found[0] <= value + 1e-4 * step * descent + 1e-15 * abs(value):
                break
            step /= 2
        else:
            break
        move, change = step * direction, found[1] - gradient
        curve = float((move * change).sum())
        if curve > 1e-12 * float(move.norm() * change.norm()):
            past = [*past, (move, change, curve)][-memory:]
        at, (value, gradient) = at + move, found
    return at


def _direction(gradient: Tensor, past: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Minus the approximate inverse curvature times the gradient: the two loops of L-BFGS."""
    direction, shares = -gradient, []
    for move, change, curve in reversed(past):
        shares.append(float((move * direction).sum()) / curve)
        direction = direction - shares[-1] * change
    if past:
        _, change, curve = past[-1]
        direction = direction * (curve / float(change.square().sum()))
    for (move, change, curve), share in zip(past, reversed(shares), strict=True):
        direction = direction + (share - float((change * direction).sum()) / curve) * move
    return direction

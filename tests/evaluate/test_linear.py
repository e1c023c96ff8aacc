from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from zoo.errors import ZooError
from zoo.evaluate import linear
from zoo.evaluate.knn import accuracy
from zoo.evaluate.linear import PENALTIES, fit_linear, fit_probe


def problem(
    count: int, size: int, classes: int, seed: int = 0, correlated: bool = False, noise: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Features (count, size) float32 of overlapping classes; `correlated` ones lie close to a few directions, and far
    from 0.
    """
    shared, draw = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    centres, y = torch.randn(classes, size, generator=shared), torch.arange(count) % classes
    x = centres[y] + noise * torch.randn(count, size, generator=draw)
    if correlated:
        x = x @ (torch.randn(size, size, generator=shared) * 0.5 ** torch.arange(size)) + 3 * torch.randn(
            size, generator=shared
        )
    return x, y


def theirs(x: Tensor, y: Tensor, strength: float, standard: bool = False):
    """scikit-learn's optimum at C = `strength`, as exact as it can be made."""
    model = LogisticRegression(C=strength, solver="newton-cg", tol=1e-12, max_iter=10_000)
    return (make_pipeline(StandardScaler(), model) if standard else model).fit(x.double().numpy(), y.numpy())


def loss(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> float:
    """The objective of the module's docstring, written out."""
    return float(
        torch.nn.functional.cross_entropy(x.double() @ weight.T + bias, y) + penalty / 2 * weight.square().sum()
    )


def same(ours: Tensor, chances: np.ndarray, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(ours.softmax(1), torch.from_numpy(chances), atol=tolerance, rtol=0)


# ---- fit_linear ----------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize(
    ("count", "size", "classes", "correlated"),
    [(300, 10, 5, False), (240, 24, 3, True), (40, 90, 4, False), (2500, 6, 10, False)],
)
def test_it_is_the_optimum_of_scikit_learn(count, size, classes, correlated, penalty):
    x, y = problem(count, size, classes, correlated=correlated)
    weight, bias = fit_linear(x, y, classes, penalty)
    model = theirs(x, y, 1 / (penalty * count))
    assert (weight.dtype, weight.shape, bias.shape) == (torch.float64, (classes, size), (classes,))
    best = loss(x, y, torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_), penalty)
    assert loss(x, y, weight, bias, penalty) == pytest.approx(best, rel=1e-11, abs=1e-13)
    same(x.double() @ weight.T + bias, model.predict_proba(x.double().numpy()))
    torch.testing.assert_close(weight, torch.from_numpy(model.coef_), atol=1e-5 * float(weight.abs().max()), rtol=0)
    other, _ = problem(200, size, classes, seed=1, correlated=correlated)
    assert (other.double() @ weight.T + bias).argmax(1).tolist() == model.predict(other.double().numpy()).tolist()


def test_the_slope_is_zero_there_by_autograd():
    x, y = problem(120, 8, 3, correlated=True)
    weight, bias = (part.requires_grad_() for part in fit_linear(x, y, 3, 1e-3))
    value = torch.nn.functional.cross_entropy(x.double() @ weight.T + bias, y) + 1e-3 / 2 * weight.square().sum()
    slopes = torch.autograd.grad(value, (weight, bias))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-8


def test_two_classes_are_scikit_learns_at_twice_c():
    x, y = problem(200, 6, 2)
    weight, bias = fit_linear(x, y, 2, 1e-2)
    model = theirs(x, y, 2 / (1e-2 * 200))
    same(x.double() @ weight.T + bias, model.predict_proba(x.double().numpy()))
    torch.testing.assert_close(weight[1] - weight[0], torch.from_numpy(model.coef_[0]), atol=1e-6, rtol=0)


def test_a_class_without_images_is_never_predicted_and_changes_nothing():
    x, y = problem(90, 5, 3)
    weight, bias = fit_linear(x, torch.tensor([0, 2, 3])[y], 5, 1e-2)
    fewer, fewer_bias = fit_linear(x, y, 3, 1e-2)
    assert torch.equal(weight[[0, 2, 3]], fewer) and torch.equal(bias[[0, 2, 3]], fewer_bias)
    assert not weight[[1, 4]].any() and (bias[[1, 4]] < -1000).all()
    assert set((1000 * x.double() @ weight.T + bias).argmax(1).tolist()) <= {0, 2, 3}
    only, only_bias = fit_linear(x, torch.full_like(y, 1), 3, 1e-2)
    assert (x.double() @ only.T + only_bias).argmax(1).eq(1).all()


def test_columns_that_are_constant_or_equal_do_no_harm():
    x, y = problem(150, 4, 3)
    x = torch.cat([x, x[:, :1], torch.full((150, 2), 5.0), torch.zeros(150, 1)], 1)
    weight, bias = fit_linear(x, y, 3, 1e-3)
    same(x.double() @ weight.T + bias, theirs(x, y, 1 / (1e-3 * 150)).predict_proba(x.double().numpy()))
    torch.testing.assert_close(weight[:, 0], weight[:, 4], atol=1e-7, rtol=0)  # equals share the weight
    assert weight[:, 5:].abs().max() < 1e-7


def test_float64_features_are_fitted_as_well():
    x, y = problem(150, 6, 3)
    torch.testing.assert_close(fit_linear(x.double(), y, 3, 1e-3)[0], fit_linear(x, y, 3, 1e-3)[0], atol=1e-7, rtol=0)


# ---- fit_probe -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*[Ll]ine [Ss]earch")  # of scikit-learn, at the last digit
@pytest.mark.parametrize(("count", "size", "correlated"), [(300, 12, True), (50, 80, False)])
def test_it_equals_a_scaler_and_logistic_regression_at_the_chosen_penalty(count, size, correlated):
    x, y = problem(count, size, 4, correlated=correlated, noise=1.5)
    held, truth = problem(400, size, 4, seed=1, correlated=correlated, noise=1.5)
    x, held = (part * torch.logspace(-2, 2, size) + 10 for part in (x, held))  # of very different scales
    x[:, 3] = held[:, 3] = 2.0
    probe = fit_probe(x, y, held, truth, 4)
    model = theirs(x, y, 1 / (probe.penalty * count), standard=True)
    same(probe.logits(held), model.predict_proba(held.double().numpy()), tolerance=1e-5)
    assert probe.predict(held).tolist() == model.predict(held.double().numpy()).tolist()
    assert torch.equal(probe.logits(held), held.double() @ probe.weight.T + probe.bias)  # standardisation is folded in
    scores = {
        penalty: 100 * theirs(x, y, 1 / (penalty * count), standard=True).score(held.double().numpy(), truth.numpy())
        for penalty in PENALTIES
    }
    assert (
        list(probe.tried) == list(PENALTIES[: len(probe.tried)]) and scores[probe.penalty] > max(scores.values()) - 0.6
    )
    assert probe.tried[probe.penalty] == pytest.approx(scores[probe.penalty])


def test_validation_chooses_strong_or_weak():
    x, y = problem(60, 40, 3, noise=4.0)  # few images, much noise: what is learned exactly is learned wrongly
    held, truth = problem(3000, 40, 3, seed=1, noise=4.0)
    noisy = fit_probe(x, y, held, truth, 3, penalties=(10.0, 1e-6))
    assert noisy.penalty == 10.0 and noisy.tried[10.0] > noisy.tried[1e-6] + 2
    # the class hides in a small difference between two columns that are nearly the same
    base, draw = torch.randn(400, 1, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    y = torch.arange(400) % 2
    x = torch.cat([base, base + 0.02 * (y[:, None] - 0.5) + 0.002 * torch.randn(400, 1, generator=draw)], 1)
    hidden = fit_probe(x[:200], y[:200], x[200:], y[200:], 2, penalties=(10.0, 1e-6))
    assert hidden.penalty == 1e-6 and hidden.tried[1e-6] > 95 > hidden.tried[10.0]
    for probe, features, labels in ((noisy, held, truth), (hidden, x[200:], y[200:])):
        assert probe.tried[probe.penalty] == accuracy(probe.predict(features), labels)


def test_no_weaker_penalty_is_tried_after_two_that_do_worse():
    x, y = problem(60, 40, 3, noise=4.0)
    held, truth = problem(3000, 40, 3, seed=1, noise=4.0)
    tried = fit_probe(x, y, held, truth, 3).tried
    penalties = list(tried)
    assert penalties == list(PENALTIES[: len(tried)]) and len(tried) < len(PENALTIES)
    best = max(tried, key=lambda penalty: (tried[penalty], penalty))
    assert penalties.index(best) == len(tried) - 3


def test_of_equally_good_penalties_the_strongest_is_taken():
    x, y = problem(60, 5, 3, noise=0.01)
    assert fit_probe(x, y, x, y, 3).penalty == 10.0
    assert fit_probe(x, y, x, y, 3, penalties=(1e-3,)).tried == {1e-3: 100.0}


def test_many_rows_are_as_few(monkeypatch):
    x, y = problem(500, 8, 4, correlated=True)
    whole = fit_probe(x, y, x, y, 4, penalties=(1e-3,))
    monkeypatch.setattr(linear, "ROWS", 64)
    parts = fit_probe(x, y, x, y, 4, penalties=(1e-3,))
    torch.testing.assert_close(parts.weight, whole.weight, atol=1e-5 * float(whole.weight.abs().max()), rtol=0)
    assert torch.equal(parts.predict(x), whole.predict(x))


# ---- refusals ------------------------------------------------------------------------------------

X, Y = problem(12, 3, 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fit_linear(X, Y, 3, 0.0), "the penalty is 0.0; it has to be a number above 0"),
        (lambda: fit_linear(X, Y, 3, float("inf")), "the penalty is inf"),
        (lambda: fit_linear(X, Y, 3, float("nan")), "the penalty is nan"),
        (
            lambda: fit_linear(X, Y, 2, 1.0),
            "one label in 0..1 is needed for each of 12 features, and there are 12 labels from 0 to 2",
        ),
        (lambda: fit_linear(X, Y - 1, 3, 1.0), "from -1 to 1"),
        (lambda: fit_linear(X, Y[:5], 3, 1.0), "there are 5 labels"),
        (lambda: fit_linear(X / 0, Y, 3, 1.0), "the training features hold NaN or infinity in 12 of 12 rows"),
        (lambda: fit_probe(X, Y, X * float("nan"), Y, 3), "the validation features hold NaN or infinity"),
        (
            lambda: fit_probe(X, Y, X, Y, 3, penalties=()),
            "there is no penalty to choose from; give at least one, above 0",
        ),
    ],
)
def test_what_can_not_be_fitted_is_refused_in_a_sentence(call, says):
    with pytest.raises(ZooError) as caught:
        call()
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_strong_penalties_that_only_see_the_commonest_class_dont_end_the_search():
    draw = torch.Generator().manual_seed(0)
    y = (torch.rand(4000, generator=draw) < 0.02).long()
    x = torch.randn(4000, 64, generator=draw)
    x[:, 0] += 4 * y
    probe = fit_probe(x[:2000], y[:2000], x[2000:], y[2000:], 2)
    tried = list(probe.tried.values())
    assert len(set(tried[:3])) == 1 and probe.penalty < 0.1  # they were all the same
    found = probe.predict(x[2000:])
    assert (found[y[2000:] == 1] == 1).float().mean() > 0.5


def test_nothing_is_better_than_every_picture_right():
    x = torch.eye(3).repeat(20, 1) * 5 + torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    y = torch.arange(3).repeat(20)
    probe = fit_probe(x, y, x, y, 3)
    assert list(probe.tried.values())[-1] == 100 and len(probe.tried) == list(probe.tried.values()).index(100) + 1

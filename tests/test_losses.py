"""Shared losses against the definition, against an outside implementation, and against what the maths demands."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from zoo.losses import info_nce, log_likelihood, negative_cosine, nt_xent, sinkhorn, soft_cross_entropy


def _views(rows: int = 6, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(rows, width, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))


def _by_definition(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Equation 1 of the paper, written with loops."""
    z = F.normalize(torch.cat([first, second]), dim=1)
    n, losses = len(first), []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [torch.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i]
        losses.append(-torch.log(torch.exp(z[i] @ z[j] / temperature) / torch.stack(others).sum()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_value_and_gradient_are_those_of_the_definition(temperature):
    first, second = _views()
    ours, theirs = nt_xent(first, second, temperature), _by_definition(first, second, temperature)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(torch.autograd.grad(ours, (first, second)), torch.autograd.grad(theirs, (first, second))):
        torch.testing.assert_close(mine, other)


def test_value_and_gradient_are_lightlys():
    oracle = pytest.importorskip("lightly.loss", reason="lightly, the outside implementation, isn't installed")
    first, second = (z.detach().float().requires_grad_() for z in _views(16, 8))
    ours, theirs = nt_xent(first, second, 0.2), oracle.NTXentLoss(temperature=0.2)(first, second)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(torch.autograd.grad(ours, (first, second)), torch.autograd.grad(theirs, (first, second))):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_neither_scale_nor_rotation_nor_order_matters():
    first, second = (z.detach() for z in _views())
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    shuffle = torch.randperm(6)
    loss = nt_xent(first, second, 0.2)
    torch.testing.assert_close(loss, nt_xent(3 * first, 0.1 * second, 0.2))
    torch.testing.assert_close(loss, nt_xent(first @ rotation, second @ rotation, 0.2))
    torch.testing.assert_close(loss, nt_xent(first[shuffle], second[shuffle], 0.2))
    torch.testing.assert_close(loss, nt_xent(second, first, 0.2))


def test_a_collapsed_batch_gives_the_loss_of_guessing():
    z = torch.ones(8, 4)
    torch.testing.assert_close(nt_xent(z, z, 0.2), torch.tensor(math.log(15.0)))


def test_one_image_has_no_negatives_and_no_loss():
    first, second = (z.detach()[:1] for z in _views())
    assert nt_xent(first, second, 0.2).abs() < 1e-12


def test_bfloat16_under_autocast_is_computed_in_float32():
    first, second = (z.detach().to(torch.bfloat16) for z in _views(64, 32))
    exact = nt_xent(first.float(), second.float(), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(nt_xent(first, second, 0.1), exact)


# ---- contrast with a queue -----------------------------------------------------------------------


def test_contrast_with_negatives_is_the_definition_and_lightlys():
    query, key = (z.detach().requires_grad_() for z in _views(6, 5))
    negatives = torch.randn(9, 5, dtype=torch.float64)
    ours = info_nce(query, key, negatives, 0.1)
    q, k, n = (F.normalize(z, dim=1) for z in (query, key, negatives))
    terms = [
        -torch.log(torch.exp(q[i] @ k[i] / 0.1) / (torch.exp(q[i] @ k[i] / 0.1) + torch.exp(q[i] @ n.T / 0.1).sum()))
        for i in range(6)
    ]
    torch.testing.assert_close(ours, torch.stack(terms).mean())
    torch.testing.assert_close(torch.autograd.grad(ours, query), torch.autograd.grad(torch.stack(terms).mean(), query))
    same = torch.ones(4, 3)
    torch.testing.assert_close(info_nce(same, same, torch.ones(9, 3), 0.2), torch.tensor(math.log(10.0)))


def test_negative_cosine_is_torchs_and_stops_the_gradient():
    first, second = _views()
    loss = negative_cosine(first, second)
    torch.testing.assert_close(loss, -F.cosine_similarity(first, second, dim=1).mean())
    loss.backward()
    assert first.grad is not None and second.grad is None


def test_soft_cross_entropy_is_torchs():
    logits, target = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64).softmax(1)
    torch.testing.assert_close(soft_cross_entropy(logits, target), F.cross_entropy(logits, target, reduction="none"))


@pytest.mark.parametrize("part", [1, 2, 64])
def test_log_likelihood_is_torchs_cross_entropy_however_it_is_cut(part):
    scores = torch.randn(5, 7, 3, 2, dtype=torch.float64, requires_grad=True)
    chosen = torch.randint(7, (5, 3, 2, 4))
    ours = log_likelihood(scores, chosen, part)
    theirs = torch.stack([-F.cross_entropy(scores, chosen[..., i], reduction="none") for i in range(4)], -1)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad((x * weight).sum(), scores)[0] for x in (ours, theirs)))
    low = scores.detach().bfloat16()
    torch.testing.assert_close(log_likelihood(low, chosen, part), log_likelihood(low.float(), chosen))


# ---- assignments ---------------------------------------------------------------------------------


def test_assignments_are_doubly_stochastic_and_the_closest_such():
    scores = torch.randn(24, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plan = sinkhorn(scores, 0.5, 200)
    torch.testing.assert_close(plan.sum(1), torch.ones(24, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((6,), 4.0, dtype=torch.float64))
    # the plan is diag(u) exp(scores / epsilon) diag(v), which makes it the optimum: its logarithm less the scores has
    # rank one, additively
    rest = plan.log() - scores / 0.5
    torch.testing.assert_close(rest - rest[:1] - rest[:, :1] + rest[0, 0], torch.zeros_like(rest), atol=1e-9, rtol=0)


def test_assignments_are_lightlys():
    oracle = pytest.importorskip(
        "lightly.loss.swav_loss", reason="lightly, the outside implementation, isn't installed"
    )
    scores = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        sinkhorn(scores, 0.5, 3), oracle.sinkhorn(scores, iterations=3, epsilon=0.5), rtol=1e-4, atol=1e-6
    )


def test_assignments_do_not_overflow_and_do_not_collapse():
    scores = torch.full((8, 4), 1.0)
    torch.testing.assert_close(sinkhorn(scores, 1e-4), torch.full((8, 4), 0.25))
    assert sinkhorn(torch.randn(8, 4) * 100, 0.01).isfinite().all()

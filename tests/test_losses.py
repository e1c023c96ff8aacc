"""NT-Xent against the definition, against an outside implementation, and against what the maths demands."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from zoo.losses import nt_xent


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

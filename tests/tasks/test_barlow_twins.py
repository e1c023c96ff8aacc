"""Barlow Twins: the authors' loss, blind to shift and scale of every number, over the global batch."""

from __future__ import annotations

import pytest
import torch

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.tasks.image.barlow_twins import BarlowTwins, barlow_twins, correlation


def _pair(rows: int = 12, dim: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    first, noise = torch.randn(2, rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return first.requires_grad_(), (first + 0.5 * noise).detach().requires_grad_()


def test_the_loss_and_its_gradient_are_lightlys():
    theirs = pytest.importorskip("lightly.loss").BarlowTwinsLoss(lambda_param=0.03)
    first, second = _pair()
    agreement, redundancy = barlow_twins(first, second)
    ours, other = agreement + 0.03 * redundancy, theirs(first, second)
    torch.testing.assert_close(ours, other)
    torch.testing.assert_close(torch.autograd.grad(ours, (first, second)), torch.autograd.grad(other, (first, second)))


def test_the_task_weighs_redundancy():
    torch.manual_seed(0)
    task = BarlowTwins(create_backbone("test_resnet", size=28), redundancy_weight=0.3, hidden=16, outputs=8)
    with counted(torch.device("cpu"), 1):
        views = task.views({"image": torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)})
    output = task(views)
    agreement, redundancy = barlow_twins(*task.projector(task.backbone(torch.cat(views))).chunk(2))
    torch.testing.assert_close(output.loss, agreement + 0.3 * redundancy)
    assert agreement > 0 and redundancy > 0 and not torch.equal(*views)


def test_shift_and_scale_of_every_number_change_nothing():
    """Affine invariance, number by number: the loss sees correlations, and those don't know of units."""
    first, second = _pair()
    moved = first * torch.tensor([3.0, -0.5, 40.0, 1.0, -7.0]) + torch.tensor([1.0, -20.0, 0.0, 5.0, 300.0])
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    torch.testing.assert_close(
        correlation(moved, second), signs[:, None] * correlation(first, second), rtol=1e-3, atol=1e-4
    )
    both = correlation(moved, second * signs)  # mirrored alike, they agree as before
    torch.testing.assert_close(both.diagonal(), correlation(first, second).diagonal(), rtol=1e-3, atol=1e-4)


def test_it_is_least_where_views_agree_and_numbers_are_uncorrelated():
    basis = torch.linalg.qr(torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    centred = torch.linalg.qr(basis - basis.mean(0))[0]  # orthogonal, and of mean 0
    agreement, redundancy = barlow_twins(1e3 * centred, 1e3 * centred)
    assert agreement < 1e-8 and redundancy < 1e-8
    same = centred[:, :1].expand(-1, 4) * 1e3  # all numbers say the same
    agreement, redundancy = barlow_twins(same, same)
    assert agreement < 1e-8 and redundancy.item() == pytest.approx(12, rel=1e-6)


def test_a_number_that_never_varies_is_correlated_with_nothing():
    first, second = _pair()
    still = first.detach().clone()
    still[:, 2] = 7.0
    still.requires_grad_()
    c = correlation(still, second)
    assert c[2].abs().max() == 0 and c.isfinite().all()
    (gradient,) = torch.autograd.grad(sum(barlow_twins(still, second)), still)
    assert gradient.isfinite().all()


def test_the_drawing_is_the_correlation():
    torch.manual_seed(0)
    task = BarlowTwins(create_backbone("test_resnet", size=28), hidden=16, outputs=8).eval()
    drawn = task.figure({"image": torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)})
    assert (
        drawn["correlation"].shape == (3, 8, 8) and drawn["correlation"].max() <= 1 and drawn["correlation"].max() > 0
    )

"""VICReg: the authors' loss, and what each of its three terms forbids."""

from __future__ import annotations

import pytest
import torch

from zoo.backbones import create_backbone
from zoo.tasks.image.vicreg import VICReg, covariance_matrix, entanglement, flatness


class Fixed(torch.nn.Module):
    """Stands for backbone and expander: gives what it was told to."""

    def __init__(self, z: torch.Tensor):
        super().__init__()
        self.z = z

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.z


def _loss(first: torch.Tensor, second: torch.Tensor, **arguments):
    torch.manual_seed(0)
    task = VICReg(create_backbone("test_resnet", size=28), hidden=16, outputs=8, **arguments)
    task.expander = Fixed(torch.cat([first, second]))
    return task((torch.rand(2, 1, 28, 28), torch.rand(2, 1, 28, 28)))


def _pair() -> tuple[torch.Tensor, torch.Tensor]:
    first, noise = 0.8 * torch.randn(2, 12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return first.requires_grad_(), (first + 0.5 * noise).detach().requires_grad_()


def test_the_loss_and_its_gradient_are_lightlys():
    loss = pytest.importorskip("lightly.loss").VICRegLoss(lambda_param=20.0, mu_param=15.0, nu_param=2.0)
    first, second = _pair()
    ours, theirs = _loss(first, second, invariance=20.0, variance=15.0, covariance=2.0).loss, loss(first, second)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, (first, second)), torch.autograd.grad(theirs, (first, second)))


def test_the_covariance_is_numpys():
    x = _pair()[0].detach() + 100
    torch.testing.assert_close(covariance_matrix(x), torch.cov(x.T))


def test_a_rotation_of_white_numbers_costs_nothing_and_neither_does_a_shift():
    """White, with deviation above 1, the same in both views: nothing is left to be gained, however the space is
    turned.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 4, dtype=torch.float64, generator=generator)
    x = torch.linalg.qr(x - x.mean(0))[0] * 16  # mean 0, covariance 256 / 15
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator))[0]
    for moved in (x, x @ turn, x + 50):
        assert _loss(moved, moved).loss < 1e-15
    assert _loss(x, x + 1).logs["invariance"] == pytest.approx(1)


def test_a_collapsed_space_is_the_worst_for_the_variance_alone():
    point = torch.ones(8, 4, dtype=torch.float64)
    output = _loss(point.clone().requires_grad_(), point)
    assert output.logs["variance"].item() == pytest.approx(0.99, abs=1e-6)  # 1 less the root of epsilon
    assert output.logs["invariance"] == 0 and output.logs["covariance"] == 0
    same = torch.linspace(-2, 2, 8, dtype=torch.float64)[:, None].expand(-1, 4)  # all numbers say the same
    c = covariance_matrix(same)
    assert flatness(c) == 0 and entanglement(c).item() == pytest.approx(3 * c[0, 0].item() ** 2)


def test_two_pictures_are_enough_and_gradients_of_a_point_are_finite():
    x = torch.ones(2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(_loss(x, x).loss, x)
    assert gradient.isfinite().all()


def test_both_views_pass_through_backbone_and_expander_and_are_drawn():
    torch.manual_seed(0)
    task = VICReg(create_backbone("test_resnet", size=28), hidden=16, outputs=8)
    batch = {"image": torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)}
    views = task.views(batch)
    z = task.expander(task.backbone(torch.cat(views)))
    torch.testing.assert_close(task(views).loss, _loss(*z.chunk(2)).loss)
    assert not torch.equal(*views) and task.figure(batch)["covariance"].shape == (3, 8, 8)

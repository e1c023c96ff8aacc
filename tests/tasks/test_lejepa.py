"""LeJEPA: the Epps-Pulley statistic in closed form, lightly's loss, the normal law as the only minimum, one set of
directions for all ranks.
"""

from __future__ import annotations

import math

import pytest
import torch

from zoo.backbones import create_backbone
from zoo.errors import ZooError
from zoo.tasks.image.lejepa import FURTHEST, POINTS, LeJEPA, epps_pulley


def _task(**arguments) -> LeJEPA:
    torch.manual_seed(0)
    return LeJEPA(
        create_backbone("test_resnet", size=28), **{"hidden": 32, "outputs": 8, "directions": 12, **arguments}
    )


def _batch(count: int = 8) -> dict:
    return {
        "image": torch.randint(
            0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    }


def _closed_form(x: torch.Tensor) -> torch.Tensor:
    """The integral over all t, term by term: exp(-d^2 / 2) for differences, exp(-x^2 / 4) across, and the normal law
    with itself.
    """
    n, differences = len(x), x[:, None] - x[None]
    terms = (-differences.square() / 2).exp().mean() - math.sqrt(2) * (-x.square() / 4).exp().mean() + 1 / math.sqrt(3)
    return n * math.sqrt(2 * math.pi) * terms


def test_the_statistic_and_its_gradient_are_the_closed_form():
    x = (
        torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        .mul(1.5)
        .add(0.4)
        .requires_grad_()
    )
    ours, exact = epps_pulley(x[:, None])[0], _closed_form(x)
    torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(ours, x), torch.autograd.grad(exact, x), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("small_count", [1, 2])
def test_the_loss_and_its_gradient_are_lightlys(small_count, monkeypatch):
    losses = pytest.importorskip("lightly.loss.lejepa_loss")
    task = _task(small_count=small_count, normality=0.1)
    normal, *kinds = task.views(_batch())
    monkeypatch.setattr(losses.SIGReg, "_generate_unit_vectors", lambda *args, **kwargs: normal / normal.norm(dim=0))
    loss = losses.LeJEPALoss(lambda_param=0.1, sigreg_knots=POINTS, sigreg_t_max=FURTHEST)
    assert [kind.shape[:2] for kind in kinds] == [(8, 2), (8, small_count)]
    z = task.projector(torch.cat([task.backbone(torch.cat(kind.unbind(1))) for kind in kinds])).unflatten(
        0, (2 + small_count, 8)
    )
    theirs, ours = loss(local_proj=z[2:], global_proj=z[:2]), task((normal, *kinds)).loss
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(value, list(task.parameters())) for value in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [2, 50])
def test_normal_numbers_have_the_known_mean_whatever_their_count(count):
    x = torch.randn(count, 20000, generator=torch.Generator().manual_seed(0))
    assert epps_pulley(x).mean().item() == pytest.approx(math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3)), rel=0.03)


def test_everything_else_is_further_from_normal():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(400, 1, generator=generator)
    uniform = torch.rand(400, 1, generator=generator).sub(0.5).mul(12**0.5)
    others = (torch.zeros(400, 1), 1.5 * normal, 0.7 * normal, normal + 0.5, normal.sign(), uniform)
    assert all(epps_pulley(other) > 2 * epps_pulley(normal) for other in others)


def test_a_cloud_that_follows_the_gradient_becomes_round():
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(128, 2, generator=generator) * torch.tensor([0.4, 2.0]) - 0.8).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.03)
    for _ in range(200):
        directions = torch.nn.functional.normalize(torch.randn(2, 16, generator=generator), dim=0)
        optimizer.zero_grad()
        epps_pulley(points @ directions).mean().backward()
        optimizer.step()
    assert points.mean(0).abs().max() < 0.1
    torch.testing.assert_close(torch.cov(points.detach().T), torch.eye(2), rtol=0, atol=0.2)


def test_all_ranks_look_along_the_sum_of_what_they_drew(monkeypatch):
    """What each rank draws is its own; the sum is the same on all of them, and normal again."""
    task = _task()
    views, other = task.views(_batch()), torch.randn(8, 12)
    here = views[0].clone()
    monkeypatch.setattr("zoo.tasks.image.lejepa.total", lambda x: x + other if x.shape == other.shape else x)
    first = task(views).loss
    other, views = here, (other, *views[1:])  # as the other rank has it, with the same pictures
    torch.testing.assert_close(task(views).loss, first)


def test_directions_are_drawn_in_views_and_nonsense_is_refused():
    task = _task()
    (one, *_), (two, *_) = task.views(_batch()), task.views(_batch())
    assert one.shape == (8, 12) and not torch.equal(one, two)
    for arguments in ({"normality": 0.0}, {"normality": 1.0}, {"smallest_crop": 0.01}):
        with pytest.raises(ZooError, match=f"task.{next(iter(arguments))}"):
            _task(**arguments)
    assert _task(small_count=0)(_task(small_count=0).views(_batch(2))).loss.isfinite()
    assert task.eval().figure(_batch(4)).keys() == {"views", "cloud"}

"""NNCLR: the paper's pseudocode, a support set that is read before it is written, and SimCLR's pair where the friend is
oneself.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.backbones import create_backbone
from zoo.tasks.image.nnclr import NNCLR, contrast, nearest


def _task(**arguments) -> NNCLR:
    torch.manual_seed(0)
    return NNCLR(create_backbone("test_resnet", size=28), **{"queue": 20, "hidden": 32, "outputs": 16, **arguments})


def _batch(count: int = 8) -> dict:
    return {
        "image": torch.randint(
            0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    }


def _papers(task: NNCLR, views: tuple, support: torch.Tensor) -> torch.Tensor:
    """Algorithm 1 of the paper."""
    z = task.projector(task.backbone(torch.cat(views)))
    (z1, z2), (p1, p2) = (F.normalize(x, dim=1).chunk(2) for x in (z, task.predictor(z)))

    def friends(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([support[torch.cdist(row[None], support).argmin()] for row in x]).detach()

    def loss(friend: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
        logits = friend @ guess.T / task.temperature
        return -(logits.diagonal() - logits.logsumexp(1)).mean()

    return loss(friends(z1), p2) / 2 + loss(friends(z2), p1) / 2


def test_the_loss_and_its_gradient_are_the_papers():
    task = _task(temperature=0.2)
    views, support = task.views(_batch()), task.support.rows.clone()
    theirs, ours = _papers(task, views, support), task(views).loss
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(value, list(task.parameters())) for value in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def test_first_views_are_remembered_after_the_loss_and_while_training_only():
    task = _task()
    views, before = task.views(_batch()), task.support.rows.clone()
    first = F.normalize(task.projector(task.backbone(torch.cat(views)))[:8].detach(), dim=1)
    task(views)
    torch.testing.assert_close(task.support.rows[:8], first)
    assert torch.equal(task.support.rows[8:], before[8:])
    now = task.support.rows.clone()
    task.eval()(views)
    assert torch.equal(task.support.rows, now)
    assert "support" in task.training_only and not any("support" in key for key in task.heads())


def test_the_friend_of_what_is_remembered_is_itself():
    support = F.normalize(torch.randn(20, 16), dim=1)
    friend, cosine = nearest(3 * support[[4, 11]], support)
    torch.testing.assert_close(friend, support[[4, 11]])
    torch.testing.assert_close(cosine, torch.ones(2))


def test_the_friend_is_the_one_that_a_search_by_hand_finds():
    support, z = F.normalize(torch.randn(20, 16), dim=1), torch.randn(7, 16)
    friend, cosine = nearest(z, support)
    for row, found, near in zip(z, friend, cosine):
        by_hand = max(((float(torch.cosine_similarity(row, one, dim=0)), index) for index, one in enumerate(support)))
        torch.testing.assert_close(found, support[by_hand[1]])
        assert near == pytest.approx(by_hand[0], abs=1e-5)


def test_more_memory_never_makes_a_friend_less_near():
    rows, z = torch.randn(64, 8).div_(8**0.5), torch.randn(10, 8)
    rows = F.normalize(rows, dim=1)
    near = [nearest(z, rows[:size])[1] for size in (1, 4, 16, 64)]
    assert all((more >= less - 1e-6).all() for less, more in zip(near, near[1:])) and (near[-1] > near[0] + 0.1).any()


def test_a_guess_like_every_friend_is_worth_chance_and_a_single_picture_is_certain():
    friend = torch.randn(7, 4, dtype=torch.float64)
    assert contrast(friend, torch.ones(7, 4, dtype=torch.float64), 0.1).item() == pytest.approx(
        torch.tensor(7.0).log().item(), rel=1e-6
    )
    assert contrast(friend[:1], friend[1:2], 0.1) == 0


def test_a_memory_smaller_than_a_batch_and_the_drawing():
    task = _task(queue=3)
    assert task(task.views(_batch())).loss.isfinite() and task(task.views(_batch())).loss.isfinite()
    assert task.eval().figure(_batch(4))["friends"].shape[0] == 3

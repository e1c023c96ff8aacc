"""SimSiam: the paper's algorithm, a gradient that stops at the target, and the collapse that this prevents."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.backbones import create_backbone
from zoo.tasks.image.simsiam import SimSiam, spread


def _task(**arguments) -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(
        create_backbone("test_resnet", size=28), **{"hidden": 32, "outputs": 16, "bottleneck": 8, **arguments}
    )


def _batch(count: int = 8) -> dict:
    return {
        "image": torch.randint(
            0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    }


def test_the_loss_and_its_gradient_are_the_papers():
    loss = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    task = _task()
    views = task.views(_batch())
    z = task.projector(task.backbone(torch.cat(views)))
    p = task.predictor(z)
    (z1, z2), (p1, p2) = z.chunk(2), p.chunk(2)
    theirs = 0.5 * loss(p1, z2.detach()) + 0.5 * loss(p2, z1.detach())
    ours = task(views).loss
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(value, list(task.parameters())) for value in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def test_what_moves_the_target_alone_has_no_gradient():
    """With a predictor that ignores its input the guess is constant: the target can be moved, but nothing pulls it."""
    task = _task()
    last = task.predictor[-1]
    torch.nn.init.zeros_(last.weight)
    views = task.views(_batch())
    gradients = torch.autograd.grad(task(views).loss, list(task.backbone.parameters()) + [last.weight, last.bias])
    assert all(g.abs().max() == 0 for g in gradients[:-2]) and gradients[-1].abs().max() > 0
    torch.testing.assert_close(task(views).loss, _loss_by_hand(task, views))


def _loss_by_hand(task: SimSiam, views: tuple) -> torch.Tensor:
    z = task.projector(task.backbone(torch.cat(views)))
    targets = z.unflatten(0, (2, -1)).flip(0).flatten(0, 1)
    return -F.cosine_similarity(task.predictor(z), targets.detach()).mean()


def test_a_perfect_guess_is_minus_one_and_scale_doesnt_matter():
    task = _task()
    task.predictor = torch.nn.Identity()
    view = torch.rand(8, 1, 28, 28)
    assert task((view, view)).loss.item() == pytest.approx(-1, abs=1e-6)
    before = _task()((view, view.flip(3))).loss
    scaled = _task()
    with torch.no_grad():
        scaled.predictor[-1].weight.mul_(7), scaled.predictor[-1].bias.mul_(7)
    torch.testing.assert_close(scaled((view, view.flip(3))).loss, before)


def test_the_spread_tells_collapse_from_directions_everywhere():
    assert spread(torch.ones(64, 32)) < 1e-6
    assert spread(torch.randn(4096, 32, generator=torch.Generator().manual_seed(0))).item() == pytest.approx(
        1, abs=0.02
    )
    assert spread(torch.zeros(2, 4)).isfinite()


def test_the_guesses_are_drawn():
    assert _task().eval().figure(_batch(4))["guesses"].shape[0] == 3

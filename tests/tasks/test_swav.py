"""SwAV: the authors' loss over whole and small views, groups of equal size, and no gradient through the assignments."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.backbones import create_backbone
from zoo.errors import ZooError
from zoo.losses import sinkhorn
from zoo.tasks.image.swav import SwAV, swapped

VIT = dict(patch_size=7, depth=1, embed_dim=32, num_heads=2, class_token=False, global_pool="avg", fc_norm=False)


def _task(**arguments) -> SwAV:
    torch.manual_seed(0)
    return SwAV(create_backbone("test_resnet", size=28), **{"prototypes": 6, "hidden": 32, "outputs": 16, **arguments})


def _batch(count: int = 8) -> dict:
    return {
        "image": torch.randint(
            0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    }


@pytest.mark.parametrize("small_count", [0, 1, 3])
def test_the_loss_and_its_gradient_are_lightlys(small_count):
    loss = pytest.importorskip("lightly.loss").SwaVLoss(temperature=0.2, sinkhorn_iterations=4, sinkhorn_epsilon=0.1)
    task = _task(temperature=0.2, iterations=4, epsilon=0.1, small_count=small_count)
    views = task.views(_batch())
    assert [kind.shape[:2] for kind in views] == [(8, 2)] + [(8, small_count)] * bool(small_count)
    seen = [torch.cat(kind.unbind(1)) for kind in views]  # view after view, as BatchNorm sees them
    heads = task.prototypes(task.projector(torch.cat([task.backbone(kind) for kind in seen]))).split(8)
    theirs, ours = loss(list(heads[:2]), list(heads[2:])).squeeze(), task(views).loss
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(value, list(task.parameters())) for value in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def test_the_views_assigned_are_sorted_into_groups_of_equal_size():
    """Doubly stochastic: every picture is in one group, every group has as many. What all pictures like best gets no
    more of them.
    """
    task = _task(iterations=200)
    whole = task.views(_batch(12))[0]
    cosines = task.prototypes(task.projector(task.backbone(torch.cat(whole.unbind(1))))).detach().double()
    cosines[:, 0] += 0.5
    for view in cosines.chunk(2):
        groups = sinkhorn(view, task.epsilon, task.iterations)
        torch.testing.assert_close(groups.sum(1), torch.ones(12, dtype=torch.float64))
        torch.testing.assert_close(groups.sum(0), torch.full((6,), 2.0, dtype=torch.float64), rtol=1e-4, atol=1e-4)
        assert view.argmax(1).bincount(minlength=6).max() > 2  # left to themselves they would crowd


def test_pictures_that_are_all_the_same_are_shared_out_evenly_and_tell_nothing():
    """Collapse is no way out: equal groups of equal pictures are uniform, and to predict these costs log K, the
    most.
    """
    cosines = torch.randn(1, 1, 6, dtype=torch.float64).clamp(-1, 1).expand(4, 8, -1)
    assigned = [sinkhorn(view, 0.05, 3) for view in cosines[:2]]
    torch.testing.assert_close(assigned[0], torch.full((8, 6), 1 / 6, dtype=torch.float64))
    assert swapped(cosines, assigned, 0.1) >= math.log(6)
    assert swapped(torch.zeros(4, 8, 6, dtype=torch.float64), assigned, 0.1).item() == pytest.approx(math.log(6))


def test_a_view_isnt_predicted_from_itself():
    cosines = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.eye(4, dtype=torch.float64)[:, [0, 1, 2, 3, 0]].T
    (gradient,) = torch.autograd.grad(swapped(cosines, [target], 0.1), cosines)
    assert gradient[0].abs().max() == 0 and gradient[1].abs().max() > 0 and gradient[2].abs().max() > 0


def test_small_views_have_their_size_and_what_cant_take_them_is_refused():
    whole, parts = _task(small_size=12).views(_batch())
    assert whole.shape == (8, 2, 1, 28, 28) and parts.shape == (8, 2, 1, 12, 12)
    vit = create_backbone("vit_tiny_patch16_224", size=28, **VIT)
    with pytest.raises(ZooError, match="task.small_size"):
        SwAV(vit)
    assert len(SwAV(vit, small_count=0).views(_batch())) == 1
    with pytest.raises(ZooError, match="smallest_crop"):
        _task(smallest_crop=0.01)


def test_more_prototypes_than_pictures_and_the_drawings():
    task = _task(prototypes=50)
    assert task(task.views(_batch(2))).loss.isfinite()
    assert task.eval().figure(_batch(3)).keys() == {"views", "groups"}

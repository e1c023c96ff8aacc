"""The zoo's contract, and what is particular to this task."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import zoo
from zoo.errors import ZooError
from zoo.recipe import read, resolve
from zoo.testing import check_task

from zoo_align_uniform.task import AlignUniform

RECIPE = Path(__file__).parent.parent / "recipes" / "align-uniform-test-resnet-fashion-mnist.yaml"


def _task(**arguments) -> AlignUniform:
    torch.manual_seed(0)
    return AlignUniform(zoo.create_backbone("test_resnet", size=32, output_stride=8), **arguments)


def test_contract():
    check_task(AlignUniform)


def test_the_loss_is_the_papers():
    """Section 4.1, written out over pictures and over pairs of them."""
    task = _task(uniformity=0.5, sharpness=3.0).eval()
    views = task.views({"image": torch.rand(5, 3, 32, 32)})
    x, y = (torch.nn.functional.normalize(task.projector(task.backbone.pool(view))) for view in views)
    align = sum(((x[i] - y[i]) ** 2).sum() for i in range(5)) / 5
    uniform = [torch.stack([torch.exp(-3.0 * ((z[i] - z[j]) ** 2).sum()) for i in range(5) for j in range(i)]).mean().log() for z in (x, y)]
    theirs = align + 0.5 * sum(uniform) / 2
    ours = task(views).loss
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(loss, list(task.projector.parameters()), retain_graph=True) for loss in (ours, theirs))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_one_point_has_no_spread_and_a_simplex_has_the_most():
    task = _task()
    assert task.spread(torch.tensor([[0.6, 0.8]] * 4)).item() == pytest.approx(0.0, abs=1e-6)
    corners = torch.eye(6) - 1 / 6
    corners = corners / corners.norm(dim=1, keepdim=True)           # every pair at the squared distance 2 + 2 / 5
    assert task.spread(corners).item() == pytest.approx(-2 * 2.4, abs=1e-5)
    for seed in range(5):
        points = torch.nn.functional.normalize(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)))
        assert -4.8 < task.spread(points).item() < 0


def test_two_views_and_two_pictures():
    """The least batch there is: one pair, whose potential is the whole mean."""
    task = _task()
    assert math.isfinite(task(task.views({"image": torch.rand(2, 3, 32, 32)})).loss.item())


def test_what_would_collapse_is_refused():
    for key in ("uniformity", "sharpness"):
        with pytest.raises(ZooError, match=f"task.{key} is 0.0; it has to be above 0"):
            _task(**{key: 0.0})


def test_the_recipe_is_complete():
    resolved = resolve(read(RECIPE))
    assert resolved["task"]["name"] == "align-uniform" and resolve(resolved) == resolved


def test_the_recipe_runs(tmp_path):
    run = zoo.pretrain(RECIPE, out=tmp_path / "run", smoke=True, progress=False)
    model, transform = zoo.load(run)
    assert model(torch.rand(2, 3, transform.size, transform.size)).shape == (2, model.num_features)

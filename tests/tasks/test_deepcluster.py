"""DeepCluster: k-means step by step, planted clusters found, rare ones weighed, and a state that a resumed run goes on
from exactly.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.tasks.image.deepcluster import DeepCluster, spherical_kmeans, weighted_cross_entropy


def _task(**arguments) -> DeepCluster:
    torch.manual_seed(0)
    defaults = {"clusters": 4, "memory": 24, "every": 3, "iterations": 5, "hidden": 32, "outputs": 8}
    return DeepCluster(create_backbone("test_resnet", size=28), **defaults | arguments)


def _views(task: DeepCluster, step: int = 0, count: int = 8) -> tuple:
    with counted(torch.device("cpu"), step):
        return task.views({"image": torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)})


def _planted(rows: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around four directions, of the sizes 6 : 3 : 2 : 1, and which they are around."""
    generator = torch.Generator().manual_seed(0)
    around = torch.tensor([0] * 6 + [1] * 3 + [2] * 2 + [3]).repeat(rows // 12)
    noise = torch.randn(rows, 8, dtype=torch.float64, generator=generator)
    return F.normalize(torch.eye(8, dtype=torch.float64)[around] + 0.1 * noise, dim=1), around


def test_the_loss_and_its_gradient_are_the_cross_entropy_with_the_other_views_cluster():
    task = _task(temperature=0.2)
    task.sizes.copy_(torch.tensor([5.0, 1.0, 12.0, 6.0]))
    views = _views(task)
    z = F.normalize(task.projector(task.backbone(torch.cat(views))), dim=1)
    near = [min(range(4), key=lambda k: (row - task.centroids[k]).norm().item()) for row in z.detach()]
    logits, numerator, denominator = z @ task.centroids.clone().T / 0.2, 0.0, 0.0
    for row, target in enumerate([*near[8:], *near[:8]]):
        numerator = numerator - logits[row].log_softmax(0)[target] / task.sizes[target]
        denominator = denominator + 1 / task.sizes[target]
    ours, theirs = task(views).loss, numerator / denominator
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(value, list(task.parameters())) for value in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def test_weights_are_those_of_drawing_clusters_equally_often():
    logits, target = torch.randn(12, 3, dtype=torch.float64), torch.tensor([0] * 9 + [1, 1, 2])
    weight = 1 / target.bincount().double()
    each = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(
        weighted_cross_entropy(logits, target, weight), torch.stack([each[target == k].mean() for k in range(3)]).mean()
    )
    torch.testing.assert_close(weighted_cross_entropy(logits, target, weight), F.cross_entropy(logits, target, weight))


def test_kmeans_finds_planted_clusters_though_one_start_has_no_rows():
    rows, around = _planted()
    centroids, sizes = spherical_kmeans(
        rows, torch.stack([rows[0], rows[6], rows[9], -rows[0]]), 10
    )  # none around the last
    found = (rows @ centroids.T).argmax(1)
    metrics = pytest.importorskip("sklearn.metrics")
    assert metrics.adjusted_rand_score(around, found) == 1
    assert sorted(sizes.tolist()) == [5, 10, 15, 30]
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(4, dtype=torch.float64))


def test_each_iteration_brings_rows_nearer_to_their_centroids():
    rows = F.normalize(torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1)
    nearness = [(rows @ spherical_kmeans(rows, rows[:6], steps)[0].T).amax(1).sum() for steps in range(12)]
    assert (
        all(after >= before - 1e-9 for before, after in zip(nearness, nearness[1:])) and nearness[-1] > nearness[0] + 1
    )
    settled = spherical_kmeans(rows, rows[:6], 60)[0]
    nearest = (rows @ settled.T).argmax(1)
    by_hand = torch.stack([F.normalize(rows[nearest == k].sum(0), dim=0) for k in range(6)])
    torch.testing.assert_close(settled, by_hand)  # a fixed point: each points where its rows point


def test_memory_fills_then_is_clustered_every_so_many_steps():
    task = _task()  # 24 pictures, 8 a step
    start, changed, before = task.centroids.clone(), [], task.centroids.clone()
    for step in range(10):
        task(_views(task, step))
        changed.append(not torch.equal(task.centroids, before))
        before = task.centroids.clone()
    assert changed == [False, False, True, False, False, True, False, False, True, False]
    assert task.sizes.sum() == 24 and not torch.equal(task.centroids, start)
    state = copy.deepcopy(task.state_dict())
    task.eval()(_views(task, 11))
    assert all(torch.equal(value, task.state_dict()[name]) for name, value in state.items())


def test_a_run_that_goes_on_from_its_state_is_the_undisturbed_one():
    whole, parts = _task(), _task()
    for step in range(8):
        if step == 4:  # between two clusterings, into another object
            state, parts = parts.state_dict(), _task()
            torch.nn.init.zeros_(parts.centroids)
            parts.load_state_dict(state)
        losses = [task(_views(task, step)).loss for task in (whole, parts)]
        assert losses[0] == losses[1]
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


def test_more_clusters_than_different_pictures_are_finite():
    rows = F.normalize(torch.ones(3, 4), dim=1)
    centroids, sizes = spherical_kmeans(rows, torch.eye(4).repeat(2, 1), 3)
    assert centroids.isfinite().all() and sizes.sum() == 3 and centroids.shape == (8, 4)
    task = _task(clusters=8, memory=8)
    assert task(_views(task)).loss.isfinite() and task(_views(task)).loss.isfinite()


def test_centroids_are_carried_and_memory_isnt_and_nonsense_is_refused():
    task = _task()
    assert {"centroids", "sizes"} <= task.heads().keys() and not any(
        key.startswith(("remembered", "pushed", "steps")) for key in task.heads()
    )
    for arguments in ({"clusters": 25}, {"clusters": 1}, {"every": 0}):
        with pytest.raises(ZooError, match=f"task.{next(iter(arguments))}"):
            _task(**arguments)
    drawn = task.eval().figure({"image": torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)})
    assert drawn["clusters"].shape[0] == 3

"""Jigsaw puzzles: the set of permutations, the tiles, and the classification of their order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from zoo.backbones import create_backbone
from zoo.errors import ZooError
from zoo.tasks.image.jigsaw import Jigsaw, distant_permutations


def _task(size: int = 30, **arguments) -> Jigsaw:
    torch.manual_seed(0)
    return Jigsaw(create_backbone("test_resnet", size=size, output_stride=8), **{"permutations": 8} | arguments)


def _image(count: int = 4, size: int = 30) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def distances(orders: np.ndarray) -> np.ndarray:
    return np.array([(a != b).sum() for a, b in itertools.combinations(orders, 2)])


def test_the_loss_is_the_papers():
    """Tile by tile through one network, side by side into the classifier, and minus the log probability of the true
    order.
    """
    task = _task().eval()
    tiles, which = task.views({"image": _image()})
    ours = task((tiles, which)).loss
    theirs = 0.0
    for puzzle, order in zip(tiles, which, strict=True):
        described = torch.cat([task.embed(task.backbone.pool(tile[None]))[0] for tile in puzzle])
        scores = task.head(described[None])[0]
        theirs = theirs - (scores[order].exp() / scores.exp().sum()).log() / len(tiles)
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(loss, list(task.parameters()), retain_graph=True) for loss in (ours, theirs))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_permutations_are_far_from_each_other():
    orders = distant_permutations(9, 64)
    assert (np.sort(orders, 1) == np.arange(9)).all() and len({tuple(order) for order in orders}) == 64
    apart = distances(orders)
    assert apart.min() == 7 and apart.mean() > 8.1
    rng = np.random.RandomState(1)
    assert distances(np.array([rng.permutation(9) for _ in range(64)])).min() <= 5  # as they come
    assert distances(distant_permutations(9, 9)).min() == 9  # a Latin square, the most there is


def test_each_is_the_farthest_that_was_left():
    """The greedy choice, recomputed from its definition over all permutations of four tiles."""
    everything = list(itertools.permutations(range(4)))
    chosen = [tuple(order) for order in distant_permutations(4, 24)]
    assert sorted(chosen) == everything and chosen[0] == (0, 1, 2, 3)

    def far(candidate: tuple, before: list[tuple]) -> tuple[int, int]:
        apart = [sum(a != b for a, b in zip(candidate, other, strict=True)) for other in before]
        return min(apart), sum(apart)

    for place in range(1, 24):
        before = chosen[:place]
        assert far(chosen[place], before) == max(
            far(candidate, before) for candidate in everything if candidate not in before
        )


def test_sixteen_tiles_are_chosen_of_a_sample():
    orders = distant_permutations(16, 10)
    assert (np.sort(orders, 1) == np.arange(16)).all() and distances(orders).min() >= 14


def test_a_tile_is_where_its_order_says():
    """Without gaps, tiles put back in their order are the picture, and as they lie they are not."""
    task, image = _task(gap=0.0, tile=10, normalize=False, smallest_crop=1.0, flip=0.0, grayscale=0.0), _image(8)
    tiles, which = task.shuffled(image)
    orders = task.orders[which]
    for puzzle, order, original in zip(tiles, orders, image, strict=True):
        for tile, place in zip(puzzle, order.tolist(), strict=True):
            top, left = place // 3 * 10, place % 3 * 10
            torch.testing.assert_close(tile, original[:, top : top + 10, left : left + 10])
    laid = task.laid(task.sorted(tiles, orders))
    kept = [pixel for pixel in range(32) if pixel % 11 != 10]  # between tiles is a pixel of black
    torch.testing.assert_close(laid[..., kept, :][..., kept], image)


def test_tiles_have_gaps_that_vary():
    """A picture whose pixels are numbered tells where each tile was cut."""
    task = _task(tile=8, normalize=False, smallest_crop=1.0, flip=0.0, grayscale=0.0)  # cells of 10, tiles of 8
    column = torch.arange(30.0).div(30).expand(64, 3, 30, 30)
    tiles, which = task.shuffled(column)
    left = (tiles[:, :, 0, 0, 0] * 30).round().long()
    within = left - task.orders[which] % 3 * 10
    assert within.min() == 0 and within.max() == 2 and {0, 1, 2} == set(within.flatten().tolist())


def test_neither_brightness_nor_contrast_of_a_tile_reaches_the_backbone():
    task = _task(smallest_crop=1.0, grayscale=0.0)
    tiles, _ = task.shuffled(_image())
    seen = task.backbone.normalize(task.levelled(tiles).flatten(0, 1))
    torch.testing.assert_close(seen.mean((2, 3)), torch.zeros(36, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std((2, 3), correction=0), torch.ones(36, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(task.levelled(0.3 * tiles + 0.5), task.levelled(tiles), atol=1e-4, rtol=0)
    flat = task.levelled(torch.full((1, 9, 3, 16, 16), 0.7))
    assert task.backbone.normalize(flat[0]).abs().max() < 1e-4


def test_a_network_that_knows_nothing_pays_the_log_of_the_count():
    task = _task()
    torch.nn.init.zeros_(task.head[-1].weight)
    torch.nn.init.zeros_(task.head[-1].bias)
    assert task(task.views({"image": _image()})).loss.item() == pytest.approx(math.log(8), abs=1e-6)


def test_impossible_puzzles_are_refused():
    for arguments, words in (
        ({"grid": 1}, "task.grid"),
        ({"grid": 2, "permutations": 25}, "at most 24"),
        ({"permutations": 1}, "task.permutations is 1;"),
        ({"gap": 0.95}, "task.gap is 0.95"),
        ({"grid": 4, "permutations": 100_001}, "at most 100,000"),
    ):
        with pytest.raises(ZooError, match=words):
            _task(**arguments)
    vit = create_backbone("vit_tiny_patch16_224", size=28, patch_size=7, embed_dim=64, depth=1, num_heads=2)
    with pytest.raises(ZooError, match="task.tile is 16"):
        Jigsaw(vit)

"""Context encoder: the authors' weighted error, and a hole whose pixels the network never sees."""

from __future__ import annotations

import pytest
import torch

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.tasks.image.inpaint import Inpaint


def _task(**arguments) -> Inpaint:
    torch.manual_seed(0)
    return Inpaint(create_backbone("test_resnet", size=32, output_stride=8), **{"width": 4, **arguments})


def _views(task: Inpaint, channels: int = 3, count: int = 4) -> tuple:
    image = torch.randint(
        0, 256, (count, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with counted(torch.device("cpu"), 0):
        return task.views({"image": image, "index": torch.arange(count)})


def test_the_loss_is_the_authors():
    """Theirs: a matrix of the overlap's weight, 1 within, times the squared error of the middle block, averaged."""
    task = _task(region="centre", overlap=3, overlap_weight=10.0).eval()
    image, hole, weight = _views(task)
    block = slice(8, 24)  # 16 of 32 pixels, in the middle
    seen = image.clone()
    seen[:, :, 11:21, 11:21] = task.backbone.shift.mean()  # the hole is smaller than the block by the overlap
    matrix = torch.full((16, 16), 10.0)
    matrix[3:-3, 3:-3] = 1
    theirs = (matrix * (task.paint(seen)[:, :, block, block] - image[:, :, block, block]).square()).mean()
    ours = task((image, hole, weight)).loss
    torch.testing.assert_close(ours, theirs)
    parameters = list(task.parameters())
    torch.testing.assert_close(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters))


@pytest.mark.parametrize("region", ["centre", "random"])
def test_hidden_pixels_change_the_target_but_never_what_is_painted(region):
    task = _task(region=region).eval()
    image, hole, weight = _views(task)
    other = torch.where(hole, torch.rand_like(image), image)
    with torch.no_grad():
        assert torch.equal(task.cut(image, hole), task.cut(other, hole))
        assert not torch.equal(task((image, hole, weight)).loss, task((other, hole, weight)).loss)


def test_errors_outside_the_block_cost_nothing():
    task = _task(overlap=1)
    image, hole, weight = _views(task, count=64)
    assert (hole.sum((1, 2, 3)) == 14**2).all() and ((weight > 0).sum((1, 2, 3)) == 16**2).all()
    assert (weight[hole] == 1).all() and (weight[~hole & (weight > 0)] == 10).all()
    task.paint = lambda seen: torch.where(weight > 0, image, 5.0)
    assert task((image, hole, weight)).loss == 0


def test_random_holes_reach_every_pixel_and_differ_between_pictures():
    _, hole, weight = _views(_task(region="random", overlap=0), count=3000)
    assert hole.any(0).all() and len(hole.flatten(1).unique(dim=0)) > 100
    _, centre, _ = _views(_task(region="centre", overlap=0))
    assert len(centre.flatten(1).unique(dim=0)) == 1 and centre[0, 0, 8:24, 8:24].all() and centre[0].sum() == 256


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour(channels):
    task = _task()
    image, hole, weight = _views(task, channels)
    assert task((image, hole, weight)).loss.isfinite() and task.paint(image).shape == image.shape


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"share": 0.0}, "task.share is 0.0"),
        ({"share": 1.0}, "at most 0.9"),
        ({"share": 0.25, "overlap": 4}, "hole of 0 pixels"),
        ({"overlap": -1}, "task.overlap is -1"),
        ({"overlap_weight": -1.0}, "task.overlap_weight is -1.0"),
    ],
)
def test_holes_that_make_no_sense_are_refused(arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        _task(**arguments)

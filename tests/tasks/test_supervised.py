"""Supervised classification: the smoothed cross entropy, its least value, and labels that don't fit."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.backbones import create_backbone
from zoo.errors import ZooError
from zoo.registry import list_tasks
from zoo.tasks.image.supervised import Supervised


def _task(**arguments) -> Supervised:
    torch.manual_seed(0)
    return Supervised(create_backbone("test_resnet", size=32, output_stride=8), **arguments)


def _batch(label: list[int]) -> dict:
    image = torch.randint(
        0, 256, (len(label), 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return {"image": image, "label": torch.tensor(label)}


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_papers(smoothing):
    """Section 7 of the second paper: cross entropy with (1 - e) of the label and e / K for every class."""
    task = _task(classes=4, smoothing=smoothing).eval()
    image, label = views = task.views(_batch([0, 3, 1, 1]))
    ours = task(views).loss
    theirs = 0.0
    for picture, right in zip(image, label, strict=True):
        scores = task.head(task.backbone.pool(picture[None]))[0]
        share = scores.exp() / scores.exp().sum()
        target = [smoothing / 4 + (1 - smoothing) * (one == right) for one in range(4)]
        theirs = theirs - sum(weight * share[one].log() for one, weight in enumerate(target)) / len(label)
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(loss, list(task.parameters()), retain_graph=True) for loss in (ours, theirs))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_certainty_has_its_price():
    """With smoothing the least loss is the entropy of the target, reached by its own distribution; being surer costs
    more.
    """
    task = _task(classes=5, smoothing=0.2)
    views = task.views(_batch([2, 2, 2]))
    torch.nn.init.zeros_(task.head.weight)
    losses = {}
    for sure in (0.0, math.log(0.84 / 0.04), 20.0):
        torch.nn.init.zeros_(task.head.bias).data[2] = sure
        losses[sure] = task(views).loss.item()
    nothing, best, surest = losses.values()
    assert nothing == pytest.approx(math.log(5)) and best == pytest.approx(
        -0.84 * math.log(0.84) - 4 * 0.04 * math.log(0.04)
    )
    assert best < nothing < surest


def test_it_is_marked_as_using_labels():
    assert next(entry for entry in list_tasks() if entry.name == "supervised").uses_labels and Supervised.needs == (
        "image",
        "label",
    )


def test_labels_that_dont_fit():
    task = _task(classes=3)
    assert task.views(_batch([0, 2]))[1].tolist() == [0, 2]
    with pytest.raises(
        ZooError,
        match="the data have the label 7, and task.classes is 3, which allows 0 to 2; set task.classes to 8 or more",
    ):
        task.views(_batch([0, 7]))
    with pytest.raises(ZooError, match="the data have the label -1, and .*; leave out what has no class"):
        task.views(_batch([-1, 7]))


def test_senseless_arguments():
    with pytest.raises(ZooError, match="task.classes is 1;"):
        _task(classes=1)
    for smoothing in (-0.1, 1.0):
        with pytest.raises(ZooError, match="task.smoothing"):
            _task(smoothing=smoothing)


def test_the_picture_has_a_row_for_each_class_believed():
    task = _task(classes=3).eval()
    torch.nn.init.zeros_(task.head.weight)
    torch.nn.init.zeros_(task.head.bias).data[1] = 1
    batch = _batch([0] * 5)
    drawn = task.figure(batch)["classes"]
    assert drawn.shape == (3, 36, 2 + 5 * 34)  # one row of five

"""Rotation prediction: the four positions, and the classification of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zoo.backbones import create_backbone
from zoo.tasks.image.rotation import Rotation


def _task(**arguments) -> Rotation:
    torch.manual_seed(0)
    return Rotation(create_backbone("test_resnet", size=32, output_stride=8), **arguments)


def _image(count: int = 3, channels: int = 3, height: int = 32) -> torch.Tensor:
    return torch.rand(count, channels, height, 32, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_the_papers():
    """Equations 2 and 3: minus the log probability of each turn, averaged over the four turns of a picture and over
    pictures.
    """
    task = _task(smallest_crop=1.0, flip=0.0).eval()
    image = _image()
    ours = task(task.views({"image": image})).loss
    theirs = 0.0
    for picture in image:
        for turns in range(4):
            turned = torch.from_numpy(
                np.rot90(picture.numpy(), turns, (1, 2)).copy()
            )  # NumPy's own quarter turns, anticlockwise
            scores = task.head(task.backbone.pool(turned[None]))[0]
            theirs = theirs - (scores[turns].exp() / scores.exp().sum()).log() / (4 * len(image))
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(loss, list(task.parameters()), retain_graph=True) for loss in (ours, theirs))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_every_picture_is_shown_in_its_four_positions():
    task, image = _task(smallest_crop=1.0, flip=0.0), _image()
    views, turns = task.views({"image": image})
    assert views.shape == (12, 3, 32, 32) and turns.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for view, turn, original in zip(views, turns, image.repeat(4, 1, 1, 1), strict=True):
        torch.testing.assert_close(view.rot90(-int(turn), (1, 2)), original)
    assert torch.allclose(
        views[3, :, 0, 0], image[0, :, 0, -1]
    )  # a quarter turn brings the top right corner to the top left


def test_a_network_that_knows_nothing_pays_log_4():
    task = _task()
    torch.nn.init.zeros_(task.head.weight)
    torch.nn.init.zeros_(task.head.bias)
    views = task.views({"image": _image(8)})
    assert task(views).loss.item() == pytest.approx(math.log(4), abs=1e-6)
    for turns in range(4):  # always the same answer
        torch.nn.init.zeros_(task.head.bias).data[turns] = 1
        assert task(views).logs["accuracy"] == 0.25


def test_pictures_without_an_up_side_can_only_be_guessed():
    """Turned by any quarter a symmetric picture is itself, so that its four answers are one and cost at least log 4 on
    average.
    """
    quarter = _image(4)
    symmetric = sum(quarter.rot90(turns, (2, 3)) for turns in range(4)) / 4
    task = _task(smallest_crop=1.0, flip=0.0).eval()
    views, turns = task.views({"image": symmetric})
    torch.testing.assert_close(views[:4], views[4:8])
    assert task((views, turns)).loss.item() >= math.log(4) - 1e-6


def test_the_picture_is_righted_by_what_the_network_believes():
    task = _task(smallest_crop=1.0, flip=0.0).eval()
    torch.nn.init.zeros_(task.head.weight)
    torch.nn.init.zeros_(task.head.bias).data[1] = 1  # it always believes in one quarter
    image = torch.zeros(2, 3, 32, 32)
    image[:, :, :, :4] = 1  # the left edge is white
    drawn = task.figure({"image": image})["righted"]
    second_believed = drawn[
        :, 2 + 34 : 2 + 34 + 32, 36 : 36 + 32
    ]  # of the second picture, which was turned by a quarter
    torch.testing.assert_close(second_believed, image[1])

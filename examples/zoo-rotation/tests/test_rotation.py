"""The zoo's contract, and what is particular to this task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from zoo.recipe import read, resolve
from zoo.testing import check_task

from zoo_rotation.task import Rotation

RECIPE = Path(__file__).parent.parent / "recipes" / "rotation-test-resnet-fashion-mnist.yaml"


def _task(**arguments) -> Rotation:
    torch.manual_seed(0)
    return Rotation(zoo.create_backbone("test_resnet", size=32, output_stride=8), **arguments)


def test_contract():
    check_task(Rotation)


def test_every_picture_is_shown_in_its_four_positions():
    task, image = _task(smallest_crop=1.0, flip=0.0), torch.rand(3, 3, 32, 32)
    views, turns = task.views({"image": image})
    assert views.shape == (12, 3, 32, 32) and turns.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for view, turn, original in zip(views, turns, image.repeat(4, 1, 1, 1), strict=True):
        torch.testing.assert_close(view.rot90(-int(turn), (1, 2)), original)
    # a quarter turn brings the top right corner to the top left
    assert torch.allclose(views[3, :, 0, 0], image[0, :, 0, -1])


def test_a_network_that_knows_nothing_pays_log_4():
    task = _task()
    torch.nn.init.zeros_(task.head.weight)
    torch.nn.init.zeros_(task.head.bias)
    views = task.views({"image": torch.rand(8, 3, 32, 32)})
    assert task(views).loss.item() == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-6)
    for turns in range(4):                          # always the same answer
        torch.nn.init.zeros_(task.head.bias).data[turns] = 1
        assert task(views).logs["accuracy"] == 0.25


def test_the_recipe_is_complete():
    resolved = resolve(read(RECIPE))
    assert resolved["task"] == {"name": "rotation", "smallest_crop": 0.5, "flip": 0.5} and resolve(resolved) == resolved


def test_the_recipe_runs(tmp_path):
    run = zoo.pretrain(RECIPE, out=tmp_path / "run", smoke=True, progress=False)
    model, transform = zoo.load(run)
    assert model(torch.rand(2, 3, transform.size, transform.size)).shape == (2, model.num_features)

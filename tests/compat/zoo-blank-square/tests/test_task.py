"""The contract of every task of the zoo, and what is particular to this one."""

from __future__ import annotations

from pathlib import Path

import torch
import zoo
from zoo.recipe import read, resolve
from zoo.testing import check_task

from zoo_blank_square.task import BlankSquareTask

RECIPE = Path(__file__).parent.parent / "recipes" / "blank-square-test-resnet-fashion-mnist.yaml"


def test_contract():
    check_task(BlankSquareTask)


def test_zoo_finds_it():
    assert "blank-square" in [task.name for task in zoo.list_tasks()]


def test_the_target_is_the_mean_colour_of_what_is_hidden():
    task = BlankSquareTask(zoo.create_backbone("test_resnet", size=32), smallest_crop=1.0, flip=0.0)
    flat = torch.tensor([0.1, 0.6, 0.9]).view(1, 3, 1, 1).expand(4, 3, 32, 32)
    seen, colour = task.views({"image": flat})
    torch.testing.assert_close(colour, flat[:, :, 0, 0])
    assert ((seen == 0.5).all(1).sum((1, 2)) == task.side**2).all()


def test_the_recipe_is_complete():
    resolved = resolve(read(RECIPE))
    assert resolved["task"]["name"] == "blank-square" and resolve(resolved) == resolved


def test_the_recipe_runs(tmp_path):
    run = zoo.pretrain(RECIPE, out=tmp_path / "run", smoke=True, progress=False)
    model, transform = zoo.load(run)
    assert model(torch.rand(2, 3, transform.size, transform.size)).shape == (2, model.num_features)

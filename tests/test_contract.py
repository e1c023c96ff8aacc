"""The contract of a pretext task: every task keeps it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.contract.small import SIZES, backbone_for, batch_of, make
from zoo.heads import Teacher
from zoo.registry import find_task, list_tasks
from zoo.testing import check_task


@pytest.mark.parametrize("name", [entry.name for entry in list_tasks() if entry.origin == "zoo"])
def test_every_task_keeps_it(name):
    check_task(find_task(name))


def test_there_are_tasks_to_check():
    assert {"simclr", "mae", "vae", "autoencoder", "colorize"} <= {entry.name for entry in list_tasks()}


def test_every_teacher_follows_by_its_momentum_and_ends_where_it_is():
    """But for MoCo v2, whose teacher's momentum is the same all the time."""
    found = set()
    for entry in list_tasks():
        cls = find_task(entry.name)
        task = make(cls, backbone_for(cls, {}), SIZES[0], {"version": "v3"} if entry.name == "moco" else {})
        if not isinstance(teacher := getattr(task, "teacher", None), Teacher):
            continue
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.add_(0.5)  # another network than the student
            before, student = next(teacher.parameters()).clone(), next(task.backbone.parameters())
            task.after_step(1.0)
            assert torch.equal(next(teacher.parameters()), before), entry.name
            task.after_step(0.0)
            torch.testing.assert_close(
                next(teacher.parameters()), task.momentum * before + (1 - task.momentum) * student
            )
        found.add(entry.name)
    assert found >= {"byol", "data2vec", "dino", "dinov2", "ibot", "ijepa", "moco"}


@pytest.mark.parametrize("name", [entry.name for entry in list_tasks() if entry.origin == "zoo"])
def test_the_backbone_runs_in_the_precision_asked_for_and_the_loss_does_not(name):
    cls, found = find_task(name), set()
    task = make(cls, backbone_for(cls, {}), SIZES[0], {})
    layers = [layer for layer in task.backbone.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        views = task.views(batch_of(cls, SIZES[0]))
    for layer in layers:  # only now: a tokenizer or a teacher outside that cooks targets has its own
        layer.register_forward_hook(lambda layer, given, out: found.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = task(views).loss
    assert found == {torch.bfloat16} and loss.dtype == torch.float32


@pytest.mark.parametrize("name", [entry.name for entry in list_tasks() if entry.origin == "zoo"])
def test_a_last_batch_of_one_picture_is_validated(name):
    cls = find_task(name)
    task = make(cls, backbone_for(cls, {}), SIZES[0], {}).eval()
    alone = {field: values[:1] for field, values in batch_of(cls, SIZES[0]).items()}
    with torch.no_grad():
        assert bool(task(task.views(alone)).loss.isfinite())

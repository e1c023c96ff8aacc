"""The learning rate is a function of progress, and what is decayed is what should be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.errors import ZooError
from zoo.optim import Optim, parameter_groups


def test_the_schedule_rises_from_zero_peaks_after_the_warmup_and_ends_at_zero():
    optim = Optim(warmup=0.1)
    assert optim.scale(0.0) == 0
    assert optim.scale(0.05) == pytest.approx(0.5)
    assert optim.scale(0.1) == pytest.approx(1)
    assert optim.scale(0.55) == pytest.approx(0.5)
    assert optim.scale(1.0) == pytest.approx(0)
    assert Optim(warmup=0).scale(0.0) == 1


def test_every_parameter_is_in_one_group_and_only_matrices_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[3].bias.requires_grad_(False)
    decayed, rest = parameter_groups(model, 0.1)
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert {id(p) for p in rest["params"]} == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_each_optimizer_uses_the_recipes_learning_rate_and_lowers_a_loss(name):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(32, 4)
    optimizer = Optim(name=name, lr=0.05, weight_decay=0.0).build(model)
    assert {group["lr"] for group in optimizer.param_groups} == {0.05}
    losses = []
    for _ in range(50):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("changes, word", [({"lr": 0.0}, "optim.lr"), ({"warmup": 1.0}, "optim.warmup"), ({"weight_decay": -1.0}, "optim.weight_decay")])
def test_senseless_values_are_refused(changes, word):
    with pytest.raises(ZooError, match=word):
        Optim(**changes)

"""The learning rate is a function of progress, and what is decayed is what should be."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import zoo
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


@pytest.mark.parametrize(
    "changes, word",
    [({"lr": 0.0}, "optim.lr"), ({"warmup": 1.0}, "optim.warmup"), ({"weight_decay": -1.0}, "optim.weight_decay")],
)
def test_senseless_values_are_refused(changes, word):
    with pytest.raises(ZooError, match=word):
        Optim(**changes)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_no_step_is_longer_than_the_clip_allows(precision, name):
    """AdamW is fused, which Lightning refuses to clip in mixed precision; its gradients are looked at, and the step of
    SGD.
    """
    torch.manual_seed(0)
    task = zoo.create_task("autoencoder", zoo.create_backbone("test_resnet", size=16), code=8, width=8)
    task.optim = Optim(name, lr=1.0 if name == "sgd" else 1e-3, weight_decay=0.0, warmup=0.0, momentum=0.0)
    before = [p.detach().clone() for p in task.parameters()]
    loader = DataLoader(
        [{"image": torch.randint(0, 256, (1, 16, 16), dtype=torch.uint8)} for _ in range(8)], batch_size=8
    )
    L.Trainer(
        max_steps=1,
        accelerator="cpu",
        precision=precision,
        gradient_clip_val=0.01,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(task, loader)
    norm = torch.nn.utils.get_total_norm([p.grad for p in task.parameters()])
    torch.testing.assert_close(norm, torch.tensor(0.01), rtol=1e-3, atol=0)
    if name == "sgd":
        moved = torch.nn.utils.get_total_norm([p - old for p, old in zip(task.parameters(), before, strict=True)])
        torch.testing.assert_close(moved, torch.tensor(0.01 * task.optim.scale(0.5)), rtol=1e-2, atol=0)

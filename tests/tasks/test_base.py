"""What every task shares: a backbone of which the loss leaves a part untrained is refused before its first step."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from recipe_example import sentence
from torch.nn.parallel import DistributedDataParallel

import zoo
from zoo.data.generated import generate
from zoo.data.module import ZooData
from zoo.data.named.catalogue import ENTRIES
from zoo.tasks.base import PretextTask

FC_NORM = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "class_token": False, "global_pool": "avg"}


def fitted(task: str, backbone: str, size: int = 32, **keywords) -> PretextTask:
    torch.manual_seed(0)
    made = zoo.create_task(task, zoo.create_backbone(backbone, size=size, **keywords))
    trainer = L.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    trainer.fit(made, ZooData(generate(ENTRIES["emoji"].info, size=size, images=32), 8))
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["colorize", "split-brain"])
def test_a_map_trains_the_norm_of_a_convnext_too(task):
    made = fitted(task, "test_convnext")
    norm = made.backbone.model.head.norm
    assert norm.weight.std() > 0 and norm.bias.std() > 0


@pytest.mark.filterwarnings("ignore")
def test_what_would_stay_random_is_refused_in_one_sentence():
    assert sentence(lambda: fitted("colorize", "test_efficientnet")).startswith(
        "the task colorize leaves conv_head.weight of the backbone test_efficientnet without gradient, so its "
        "features would go through random numbers; "
        "take one whose features are its last map, pooled, such as test_resnet"
    )
    fitted("colorize", "vit_tiny_patch16_224", **FC_NORM)  # a norm that stays a norm harms nobody
    fitted("simclr", "test_efficientnet")  # which trains what it pools


def test_processes_that_wait_for_every_gradient_are_told_what_gets_none():
    task = zoo.create_task("colorize", zoo.create_backbone("vit_tiny_patch16_224", size=32, **FC_NORM))
    task(task.views({"image": torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)})).loss.backward()

    def check(kind: type = DistributedDataParallel, unused: bool = False) -> None:
        model = kind.__new__(kind)
        torch.nn.Module.__init__(model)
        model.find_unused_parameters = unused
        task.trainer = SimpleNamespace(model=model, global_step=0, precision_plugin=None)
        task.on_before_optimizer_step(None)

    assert sentence(check).startswith(
        "the task colorize leaves fc_norm.weight of the backbone vit_tiny_patch16_224 and 1 more of its parameters "
        "without "
        "gradient, and processes that train together wait for every gradient; "
    )
    check(unused=True)
    check(torch.nn.Linear)
    task.spare = torch.nn.Linear(2, 2)
    task.backbone.model.fc_norm.requires_grad_(False)
    check(torch.nn.Linear)
    assert sentence(check).startswith(
        "the task colorize leaves spare.weight and 1 more of its parameters without gradient, and processes"
    )


@pytest.mark.filterwarnings("ignore")
def test_the_last_step_of_an_epoch_weighs_as_much_though_fewer_batches_are_left_for_it():
    """Five batches of one picture, four to a step: as much is left of the gradient of one as of four."""

    class Seen(L.Callback):
        norms: list[float] = []

        def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
            self.norms.append(
                float(torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))
            )

    torch.manual_seed(0)
    task = zoo.create_task("autoencoder", zoo.create_backbone("vit_tiny_patch16_224", size=16, **FC_NORM), code=4)
    data = ZooData(generate(ENTRIES["digits"].info, size=16, images=80), 1)
    data.dataset.fields["image"][:] = data.dataset.fields["image"][:1]
    trainer = L.Trainer(
        max_steps=4,
        limit_train_batches=5,
        accumulate_grad_batches=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[Seen()],
    )
    task.optim = replace(task.optim, lr=1e-9)
    trainer.fit(task, data)
    assert Seen.norms == pytest.approx([Seen.norms[0]] * 4, rel=1e-4) and Seen.norms[0] > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_weights_of_another_width_are_refused_in_one_sentence(precision):
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    data = ZooData(generate(ENTRIES["digits"].info, size=16, images=20), 4)
    assert sentence(
        lambda: trainer.fit(zoo.create_task("simclr", zoo.create_backbone("test_resnet", size=16)), data)
    ).startswith(
        f"precision {precision} would keep the weights in other than 32 bits, in which views and losses are computed; "
        "use one of 32-true, bf16-mixed"
    )

from __future__ import annotations

import warnings
from dataclasses import replace

import lightning as L
import pytest
import torch

import zoo
from zoo.backbones.image import ImageBackbone
from zoo.data.module import ZooData
from zoo.evaluate.banks import extract
from zoo.evaluate.knn import accuracy, knn
from zoo.evaluate.rank import effective_rank, spread
from zoo.train.looks import FeatureHealth, OnlineKNN

VIT = {
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "class_token": False,
    "global_pool": "avg",
    "fc_norm": False,
}


def a_task() -> L.LightningModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return zoo.create_task(
            "simclr",
            zoo.create_backbone("vit_tiny_patch16_224", size=8, drop_path_rate=0.1, **VIT),
            hidden=16,
            outputs=8,
        )


class Watch(L.Callback):
    """Keeps the loss of each step, and what an onlooker computes anew at each validation."""

    def __init__(self, images: int = 2000):
        self.images, self.losses, self.seen, self.draws = images, [], [], []

    def on_train_batch_end(self, trainer, task, outputs, *ignored):
        self.losses.append(float(outputs["loss"]))
        self.draws.append(float(torch.rand(1)))

    def on_validation_end(self, trainer, task):
        if trainer.sanity_checking:
            return
        bank = extract(task, trainer.datamodule, ("train", "validation"), self.images)["backbone"]
        found = knn(bank.x["train"], bank.y["train"], bank.x["validation"], 20, 10) if bank.y else None
        self.seen.append(
            {
                "knn": found is not None and accuracy(found, bank.y["validation"]),
                "spread": spread(bank.x["validation"]),
                "effective_rank": effective_rank(bank.x["validation"]),
                "logged": dict(trainer.callback_metrics),
            }
        )


def fit(task: L.LightningModule, data, *callbacks: L.Callback, epochs: int = 2, **more) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **more,
    )
    trainer.fit(task, data)
    return trainer


@pytest.fixture(scope="module")
def digits():
    return zoo.create_data("digits", batch_size=256)


def without_labels(data: ZooData) -> ZooData:
    return ZooData(replace(data.dataset, fields={"image": data.dataset.fields["image"]}), data.batch_size)


# ---- what is logged ------------------------------------------------------------------------------


def test_logged_values_are_those_computed_anew(digits):
    watch = Watch()
    fit(a_task(), digits, OnlineKNN(), FeatureHealth(), watch, num_sanity_val_steps=1)
    assert len(watch.seen) == 2 and watch.seen[0]["knn"] > 15
    for seen in watch.seen:
        for key in ("knn", "spread", "effective_rank"):
            assert float(seen["logged"][key]) == pytest.approx(seen[key], rel=1e-6)
    assert watch.seen[0]["spread"] != watch.seen[1]["spread"]  # of the weights as they were then


def test_fewer_images_can_be_asked_for(digits):
    watch, whole = Watch(images=100), Watch()
    fit(a_task(), digits, OnlineKNN(100), FeatureHealth(100), watch, whole, epochs=1)
    logged = watch.seen[0]["logged"]
    for key in ("knn", "spread", "effective_rank"):
        assert float(logged[key]) == pytest.approx(watch.seen[0][key], rel=1e-6)
        assert float(logged[key]) != pytest.approx(whole.seen[0][key], rel=1e-6)


# ---- only looking --------------------------------------------------------------------------------


def test_training_is_bitwise_the_same_with_and_without_them(digits):
    runs = []
    for callbacks in ((), (OnlineKNN(), FeatureHealth())):
        torch.manual_seed(3)
        task, watch = a_task(), Watch()
        watch.on_validation_end = lambda *_: None
        trainer = fit(task, digits, *callbacks, watch, epochs=3)
        assert ("knn" in trainer.callback_metrics) == bool(callbacks)
        runs.append((watch.losses, watch.draws, task.state_dict(), [module.training for module in task.modules()]))
    plain, watched = runs
    assert len(plain[0]) == 12 and plain[0] == watched[0] and plain[1] == watched[1] and plain[3] == watched[3]
    assert all(torch.equal(value, watched[2][key]) for key, value in plain[2].items())


# ---- collapse ------------------------------------------------------------------------------------


def collapse(task: L.LightningModule) -> L.LightningModule:
    """All images get the same features: the last norm's weights are 0 and stay so."""
    norm = task.backbone.model.norm
    torch.nn.init.zeros_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    for p in task.parameters():
        p.requires_grad_(p is not norm.weight and p is not norm.bias)
    return task


def test_a_collapse_is_told_once(digits):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(collapse(a_task()), digits, FeatureHealth(), epochs=3)
    told = [str(warning.message) for warning in caught if "collapsed" in str(warning.message)]
    assert len(told) == 1 and told[0].startswith(
        "the features have collapsed at step 4: all images get almost the same (spread "
    )
    assert told[0].endswith("); a lower optim.lr or stronger views usually mend it")
    assert float(trainer.callback_metrics["spread"]) < 1e-6 and float(
        trainer.callback_metrics["effective_rank"]
    ) == pytest.approx(1, abs=1e-3)


def flat(task: L.LightningModule) -> L.LightningModule:
    """The features of half of the images are the opposite of the others': a wide spread, along a line."""
    direction = torch.randn(16, generator=torch.Generator().manual_seed(0))
    pool = task.backbone.pool
    task.backbone.pool = lambda x: (direction + 0.01 * pool(x)) * (2.0 * (torch.arange(len(x)) % 2) - 1)[:, None]
    return task


def told_of(*callbacks: L.Callback, task: L.LightningModule, data: ZooData, **more) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(task, data, *callbacks, **more)
    return [str(warning.message) for warning in caught if "collapsed" in str(warning.message)]


def test_a_collapse_to_one_direction_is_told_though_the_spread_is_wide(digits):
    (told,) = told_of(FeatureHealth(), watch := Watch(), task=flat(a_task()), data=digits)
    assert told.startswith(
        "the features have collapsed at step 4: those of all images lie along one direction (effective rank 1."
    )
    assert watch.seen[0]["spread"] > 0.7 and 1 < watch.seen[0]["effective_rank"] < 1.2


def test_the_rank_of_a_few_images_is_no_sign(digits):
    assert not told_of(FeatureHealth(10), task=flat(a_task()), data=digits, epochs=1)


@pytest.mark.parametrize("split", ["validation", "train"])
@pytest.mark.parametrize("spoil", [collapse, flat])
def test_a_collapse_is_told_at_the_end_of_a_run_that_is_never_validated(spoil, split, digits):
    data = digits.dataset
    splits = data.splits | ({"validation": data.splits["validation"][:0]} if split == "train" else {})
    (told,) = told_of(
        FeatureHealth(), task=spoil(a_task()), data=ZooData(replace(data, splits=splits), 256), limit_val_batches=0
    )
    assert "collapsed at step 8" in told
    assert not told_of(FeatureHealth(), task=a_task(), data=digits, limit_val_batches=0)


@pytest.mark.filterwarnings("ignore:.*num_workers")
def test_a_recipe_without_validation_is_looked_at_in_the_end(tmp_path, monkeypatch):
    """By pretrain, and the run is the same to the last bit."""
    recipe = {
        "data": {"name": "digits", "batch_size": 256},
        "backbone": {"name": "vit_tiny_patch16_224", **VIT},
        "trainer": {"max_steps": 2},
        "task": {"name": "simclr", "hidden": 16, "outputs": 8},
    }
    recipe["trainer"]["validate_every"] = 0
    plain, forward = zoo.pretrain(recipe, out=tmp_path / "plain", progress=False), ImageBackbone.pool
    monkeypatch.setattr(ImageBackbone, "pool", lambda self, x: forward(self, x) * 0 + 1)
    with pytest.warns(UserWarning, match="the features have collapsed at step 2"):
        zoo.pretrain(recipe, out=tmp_path / "collapsed", progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(FeatureHealth, "on_train_end", lambda *_: None)
    unseen = zoo.pretrain(recipe, out=tmp_path / "unseen", progress=False)
    weights = "checkpoint/model.safetensors"
    assert (
        (plain / weights).read_bytes()
        == (unseen / weights).read_bytes()
        != (tmp_path / "collapsed" / weights).read_bytes()
    )


def test_healthy_features_are_no_collapse(digits):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(a_task(), digits, FeatureHealth(), epochs=1)
    assert not [warning for warning in caught if "collapsed" in str(warning.message)]


# ---- nothing to look at --------------------------------------------------------------------------


def test_without_labels_there_is_no_vote_but_health(digits):
    metrics = fit(a_task(), without_labels(digits), OnlineKNN(), FeatureHealth(), epochs=1).callback_metrics
    assert "knn" not in metrics and float(metrics["spread"]) > 0


def test_without_validation_nothing_is_done(digits):
    data = digits.dataset
    none = ZooData(replace(data, splits=data.splits | {"validation": data.splits["validation"][:0]}), 256)
    task, trainer = a_task(), fit(a_task(), none, epochs=1)
    for callback in (OnlineKNN(), FeatureHealth()):
        callback.on_validation_epoch_end(trainer, task)  # logs nothing: that would fail outside of a loop
    assert not {"knn", "spread", "effective_rank"} & trainer.callback_metrics.keys()


def test_one_picture_is_no_collapse(digits):
    data = digits.dataset
    one = ZooData(replace(data, splits=data.splits | {"validation": data.splits["validation"][:1]}), 256)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = fit(a_task(), one, OnlineKNN(), FeatureHealth(), epochs=1).callback_metrics
    assert float(metrics["knn"]) in (0.0, 100.0) and not {"spread", "effective_rank"} & metrics.keys()
    assert not [warning for warning in caught if "collapsed" in str(warning.message)]


def test_other_peoples_data_are_left_alone(digits):
    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 32

        def __getitem__(self, row: int) -> dict:
            return {"image": digits.dataset.fields["image"][row], "index": row}

    loader = torch.utils.data.DataLoader(Pictures(), batch_size=16)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[OnlineKNN(), FeatureHealth()],
    )
    trainer.fit(a_task(), loader, loader)
    assert "val_loss" in trainer.callback_metrics and not {"knn", "spread"} & trainer.callback_metrics.keys()

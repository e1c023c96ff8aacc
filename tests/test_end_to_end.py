"""The whole path with what training really wrote: pretrain, checkpoint, push, pull, adapt, evaluate."""

from __future__ import annotations

import timm
import torch

import zoo
from zoo.card import read_card
from zoo.checkpoint.read import load_backbone
from zoo.checkpoint.write import update_card
from zoo.hub import hub
from zoo.hub import push as pushing
from zoo.views import to_float

RECIPE = {
    "data": {"name": "digits", "batch_size": 128, "size": 16},
    "backbone": {"name": "test_resnet", "output_stride": 8},
    "task": {"name": "simclr", "hidden": 64, "outputs": 32, "flip": 0.0, "smallest_crop": 0.5},
    "optim": {"lr": 4e-3, "warmup": 0.1},
    "trainer": {"max_steps": 120, "validate_every": 4},
}


def test_from_recipe_to_an_adapted_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    run = zoo.pretrain(RECIPE, out=tmp_path / "run", progress=False)
    card = read_card(run / "checkpoint")
    assert card["steps"] == 120 and card["samples_seen"] == 120 * 128 and card["check"]["value"] > 20
    assert {"recipe.yaml", "metrics.csv", "last.ckpt", "checkpoint"} <= {path.name for path in run.iterdir()}

    update_card(run / "checkpoint", license="Apache-2.0")
    pushing.push(run / "checkpoint", tmp_path / "hub", name="digits-simclr")
    assert [entry["name"] for entry in hub.list_checkpoints(str(tmp_path / "hub"))] == ["digits-simclr"]
    pulled = hub.pull("digits-simclr", hub=str(tmp_path / "hub"))

    # the same features with our package, through zoo.load, and through timm alone
    backbone = load_backbone(pulled).eval()
    model, transform = zoo.load("digits-simclr", hub=str(tmp_path / "hub"))
    plain = timm.create_model(f"local-dir:{pulled}", pretrained=True).eval()
    images = to_float(zoo.load_data("digits", size=16).fields["image"][:8])
    with torch.no_grad():
        normal = backbone.normalize(images)
        assert torch.equal(model(normal), plain(normal)) and torch.equal(backbone.pool(images), plain(normal))

    rows = zoo.evaluate("digits-simclr", hub=str(tmp_path / "hub"), labels=(1.0, 5))
    value = {(row["protocol"], row["features"], row["labels"]): row["value"] for row in rows}
    assert {features for _, features, _ in value} == {"backbone", "random weights", "pixels"}
    assert value["knn", "backbone", 1.0] > value["knn", "random weights", 1.0] - 2  # two seconds of training: no worse
    assert value["linear", "backbone", 1.0] > 60

    result = zoo.adapt("digits-simclr", "digits", mode="probe", hub=str(tmp_path / "hub"), out=tmp_path / "adapted")
    classifier = timm.create_model(f"local-dir:{result.folder}", pretrained=True).eval()
    with torch.no_grad():
        assert classifier(normal).shape == (8, 10)
    assert abs(result.value - value["linear", "backbone", 1.0]) < 1.0


def test_the_same_recipe_and_seed_give_the_same_weights(tmp_path):
    short = {**RECIPE, "trainer": {"max_steps": 12}}
    runs = [
        zoo.pretrain(short, out=tmp_path / name, progress=False, **changes)
        for name, changes in (("a", {}), ("b", {}), ("c", {"seed": 1}))
    ]
    hashes = [
        next(f["sha256"] for f in read_card(run / "checkpoint")["files"] if f["path"] == "model.safetensors")
        for run in runs
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_plain_lightning(tmp_path):
    import lightning as L

    data = zoo.create_data("digits", batch_size=64, size=16)
    task = zoo.create_task("simclr", zoo.create_backbone("test_resnet", size=16), temperature=0.1)
    before = [p.clone() for p in task.parameters()]
    trainer = L.Trainer(
        max_steps=5,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, data)
    assert trainer.global_step == 5 and torch.isfinite(trainer.callback_metrics["loss"])
    assert any(not torch.equal(a, b) for a, b in zip(before, task.parameters()))

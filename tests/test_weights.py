"""A pretext task that starts from weights: of a checkpoint of the zoo, or of a model that timm wrote."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import timm
import torch
from launching import torchrun
from run_example import recipe, train

import zoo
from zoo import card as cards
from zoo.backbones import create_backbone
from zoo.card import read_card
from zoo.checkpoint.read import load_backbone
from zoo.errors import ZooError


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A run whose checkpoint other runs start from."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ZOO_HOME", str(tmp_path_factory.mktemp("home")))
        return train(tmp_path_factory.mktemp("parent") / "run", trainer={"max_steps": 2})


def started(out, source, **changes):
    """One step, of no length, from those weights; the recipe names no network."""
    values = recipe(optim={"lr": 1e-30, "weight_decay": 0.0}, trainer={"max_steps": 1}, **changes)
    values["backbone"] = {"weights": str(source)} | changes.get("backbone", {})
    return zoo.pretrain(values, out=out, progress=False)


def parameters(folder):
    return dict(load_backbone(folder / "checkpoint").model.named_parameters())


def test_a_run_starts_from_a_checkpoint_and_says_so(parent, tmp_path):
    run = started(tmp_path / "run", parent)
    ours, theirs = parameters(run), parameters(parent)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    digest = next(file["sha256"] for file in read_card(parent / "checkpoint")["files"] if file["path"].startswith("mo"))
    assert digest in read_card(run / "checkpoint")["parent"] and digest in (run / "run.json").read_text()
    saved = zoo.recipe.read(run / "recipe.yaml")["backbone"]
    assert saved == {"name": "test_resnet", "weights": str(parent)}


def test_a_run_starts_from_a_folder_of_timm(tmp_path):
    from timm.models import save_for_hf

    model = timm.create_model("test_vit", img_size=32, num_classes=0)
    save_for_hf(model, tmp_path / "vit", model_args={"img_size": 32}, safe_serialization=True)
    run = started(tmp_path / "run", tmp_path / "vit", data={"size": 32})
    ours = parameters(run)
    assert all(torch.allclose(ours[name], value, atol=1e-6) for name, value in model.named_parameters())
    with pytest.raises(ZooError, match="data.size to 32"):
        started(tmp_path / "other", tmp_path / "vit", data={"size": 64})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("backbone", "words"),
    [({"name": "test_vit"}, "backbone.name.*test_vit.*test_resnet"), ({"in_chans": 1}, "backbone.in_chans.*1.*3")],
)
def test_a_contradicting_keyword_is_refused(parent, backbone, words, tmp_path):
    with pytest.raises(ZooError, match=words):
        started(tmp_path / "run", parent, backbone=backbone)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["nothing-such", "", "./nowhere"])
def test_weights_that_cannot_be_had(name, tmp_path):
    with pytest.raises(ZooError, match="backbone.weights"):
        started(tmp_path / "run", name)
    assert not (tmp_path / "run").exists()


def test_a_run_is_resumed_without_its_source(parent, tmp_path):
    source = shutil.copytree(parent / "checkpoint", tmp_path / "source")
    run = started(tmp_path / "run", source)
    before = parameters(run)
    shutil.rmtree(source)
    shutil.rmtree(run / "checkpoint")
    values = recipe(optim={"lr": 1e-30, "weight_decay": 0.0}, trainer={"max_steps": 1})
    zoo.pretrain(values | {"backbone": {"weights": str(source)}}, out=run, resume=True, progress=False)
    assert all(torch.equal(before[name], value) for name, value in parameters(run).items())
    assert "sha256:" in read_card(run / "checkpoint")["parent"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_process_starts_from_the_same_weights(strategy, tmp_path):
    """A step of no length by two processes leaves the weights of the source, whoever holds which part of them."""
    vit = {"name": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    vit |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    data = {"name": "digits", "size": 16, "batch_size": 8}
    first = zoo.pretrain(
        {**recipe(trainer={"max_steps": 1}), "data": data, "backbone": vit, "task": {"name": "mae"}},
        out=tmp_path / "parent",
        progress=False,
    )
    values = recipe(optim={"lr": 1e-30, "weight_decay": 0.0}, trainer={"max_steps": 1, "devices": 2})
    values["trainer"] |= {"strategy": strategy}
    values |= {"data": data, "backbone": {"weights": str(first)}, "task": {"name": "mae"}}
    zoo.recipe.save(zoo.recipe.resolve(values), tmp_path / "two.yaml")
    words = ("-m", "zoo.cli", "pretrain", str(tmp_path / "two.yaml"), "--out", str(tmp_path / "run"), "--no-progress")
    code, _, error = torchrun("--nproc-per-node", "2", *words)
    assert code == 0, error[-3000:]
    ours, theirs = parameters(tmp_path / "run"), parameters(first)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert str(first) in read_card(tmp_path / "run" / "checkpoint")["parent"]

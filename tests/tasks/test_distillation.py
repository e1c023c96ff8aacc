"""Distillation: the two losses, relations, what becomes of the teacher, and teachers that there aren't."""

from __future__ import annotations

import json
import shutil
import types

import pytest
import safetensors.torch
import timm
import torch

from zoo.backbones import create_backbone
from zoo.checkpoint.read import load_backbone
from zoo.errors import ZooError
from zoo.paths import shipped
from zoo.tasks.image.distillation import Distillation, load_teacher, nearest, relative_distances, rotation

TEACHER = shipped("hub") / "simclr-resnet10t-fashion-mnist"


def _task(**arguments) -> Distillation:
    torch.manual_seed(0)
    return Distillation(
        create_backbone("test_resnet", size=32, output_stride=8), **{"teacher": str(TEACHER)} | arguments
    )


def _batch(count: int = 6) -> dict:
    return {
        "image": torch.randint(
            0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    }


@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_the_loss_is_the_papers(loss):
    """Picture by picture against the standardised teacher, and pair by pair the Huber loss of RKD's equation 7."""
    task = _task(loss=loss, relational=3.0)
    image, told = views = task.views(_batch())
    ours = task(views).loss
    pooled = task.backbone.pool(image)
    target = (told - told.mean(0)) / (told.var(0, correction=0) + 1e-5).sqrt()
    if loss == "mse":
        theirs = sum(((task.head(own) - one) ** 2).mean() for own, one in zip(pooled, target, strict=True)) / 6
    else:
        theirs = (
            sum(
                1 - torch.dot(said := task.head(own), one) / said.norm() / one.norm()
                for own, one in zip(pooled, target, strict=True)
            )
            / 6
        )
    pairs = [(a, b) for a in range(6) for b in range(a)]
    own, other = (torch.stack([(x[a] - x[b]).square().sum().sqrt() for a, b in pairs]) for x in (pooled, told))
    off = (own / own.mean() - other / other.mean()).abs()
    theirs = theirs + 3 * torch.where(off < 1, off**2 / 2, off - 0.5).mean()
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(loss, list(task.parameters()), retain_graph=True) for loss in (ours, theirs))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_what_the_teacher_says_is_its_features_of_the_same_view():
    task, teacher = _task(smallest_crop=1.0, flip=0.0), load_backbone(TEACHER)
    image, told = task.views(_batch())
    small = torch.nn.functional.interpolate(image, (28, 28), mode="bilinear", antialias=True)
    torch.testing.assert_close(told, teacher.pool(small))
    assert teacher.size == 28 and told.shape == (6, 256) and not told.requires_grad


def test_a_wide_teacher_is_turned_and_cut_and_a_narrow_one_filled_up():
    whole, cut, filled = (
        _task(outputs=outputs, smallest_crop=1.0, flip=0.0).views(_batch())[1] for outputs in (256, 100, 300)
    )
    torch.testing.assert_close(filled[:, :256], whole)
    assert filled[:, 256:].eq(0).all() and cut.shape == (6, 100)
    turn = rotation(256)
    torch.testing.assert_close(turn @ turn.T, torch.eye(256, dtype=torch.float64))
    torch.testing.assert_close(cut, whole @ turn[:, :100].float())
    task = _task(outputs=300)
    assert task(task.views(_batch())).loss.isfinite()  # what is filled up has no deviation


def test_a_student_that_says_what_the_teacher_says_pays_nothing():
    told = torch.randn(5, 256)
    for loss in ("cosine", "mse"):
        task = _task(loss=loss, relational=1.0)
        task.backbone.pool = lambda image: told
        task.head = torch.nn.Identity()
        task.standard = torch.nn.Identity()
        assert task((torch.zeros(5, 3, 32, 32), told)).loss.item() == pytest.approx(0.0, abs=1e-6)


def test_relations_have_no_scale_and_no_direction():
    x = torch.randn(6, 4, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    torch.testing.assert_close(relative_distances(7 * x @ turn + 1), relative_distances(x))
    assert relative_distances(x).mean() == pytest.approx(1.0) and relative_distances(torch.zeros(3, 2)).isfinite().all()
    assert nearest(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [0.1, 1.0]])).tolist() == [2, 3, 0, 1]


def test_a_picture_alone_has_no_relations():
    assert relative_distances(torch.ones(1, 5)).tolist() == [0.0]


def test_the_teacher_is_frozen_and_leaves_no_trace():
    task = _task()
    task(task.views(_batch())).loss.backward()
    teacher = task.frozen(torch.device("cpu"))
    assert not teacher.training and all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert {key.split(".")[0] for key in task.state_dict()} == {"backbone", "head", "standard"}
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    task.train().views(_batch())
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items()) and not teacher.training


def test_a_distilled_checkpoint_can_be_read_where_the_teacher_is_not():
    task = _task(teacher="a-teacher-of-another-machine")
    assert task.features(torch.rand(2, 3, 32, 32))["backbone"].shape == (2, task.backbone.num_features)


def test_a_teacher_that_there_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZOO_HUB", raising=False)
    with pytest.raises(
        ZooError,
        match="task.teacher is 'simclr-resnet10-fashion-mnist', .* did you mean simclr-resnet10t-fashion-mnist",
    ):
        _task(teacher="simclr-resnet10-fashion-mnist").views(_batch())
    with pytest.raises(
        ZooError, match=f"task.teacher is 'local-dir:{tmp_path}', which can't be used: .* holds no checkpoint"
    ):
        _task(teacher=f"local-dir:{tmp_path}").views(_batch())
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(ZooError, match="task.teacher is 'hf://nobody/nothing@main'"):
        _task(teacher="hf://nobody/nothing@main").views(_batch())


def test_a_folder_that_timm_saved(tmp_path):
    """With a classifier, which is left aside, and a normalisation of its own."""
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=7).eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    preset = {"input_size": [3, 48, 48], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "test_resnet", "num_classes": 7, "pretrained_cfg": preset})
    )
    before = torch.get_rng_state()
    teacher = load_teacher(f"local-dir:{tmp_path}")
    assert torch.equal(before, torch.get_rng_state())
    image = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        seen = (image - torch.tensor(preset["mean"]).view(3, 1, 1)) / torch.tensor(preset["std"]).view(3, 1, 1)
        torch.testing.assert_close(
            teacher.pool(image), model.forward_head(model.forward_features(seen), pre_logits=True)
        )
    assert teacher.size == 48 and _task(teacher=str(tmp_path)).views(_batch())[0].shape == (6, 3, 32, 32)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": preset}))
    with pytest.raises(ZooError, match="lacks .* of the .* tensors"):
        load_teacher(str(tmp_path))
    for text in (
        "{}",
        "[]",
        '{"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3], "mean": 1, "std": 1}}',
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ZooError, match="is not timm's description of a model"):
            load_teacher(str(tmp_path))


def test_a_repository_of_timms_own(tmp_path, monkeypatch):
    """Brought once, and then there without a network; of other repositories the old is true. The client's functions are
    replaced.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    monkeypatch.delenv("ZOO_OFFLINE", raising=False)
    repository, asked = tmp_path / "repository", []
    repository.mkdir()
    model = timm.create_model("test_resnet", num_classes=7).eval()
    safetensors.torch.save_file(model.state_dict(), repository / "model.safetensors")
    preset = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    (repository / "config.json").write_text(
        json.dumps({"architecture": "test_resnet", "num_classes": 7, "pretrained_cfg": preset})
    )

    def metadata(path):
        if not (repository / path).is_file():
            raise EntryNotFoundError(f"no {path}")
        return types.SimpleNamespace(size=(repository / path).stat().st_size)

    def download(repo, path, revision=None, local_dir=None):
        asked.append((repo, path, revision))
        return str(shutil.copy(repository / path, f"{local_dir}/{path}"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda repo, path, revision=None: path)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    address = "hf://timm/test_resnet.r160_in1k@main"
    with torch.no_grad():
        wanted = model.forward_head(model.forward_features(2 * torch.ones(1, 3, 32, 32) - 1), pre_logits=True)
        torch.testing.assert_close(load_teacher(address).pool(torch.ones(1, 3, 32, 32)), wanted)
        assert asked == [("timm/test_resnet.r160_in1k", name, "main") for name in ("config.json", "model.safetensors")]
        monkeypatch.setenv("ZOO_OFFLINE", "1")
        torch.testing.assert_close(load_teacher(address).pool(torch.ones(1, 3, 32, 32)), wanted)
    with pytest.raises(ZooError, match="task.teacher is 'hf://timm/another@main', which can't be used: .*ZOO_OFFLINE"):
        load_teacher("hf://timm/another@main")
    monkeypatch.delenv("ZOO_OFFLINE")
    (repository / "model.safetensors").unlink()
    with pytest.raises(ZooError, match="has no model.safetensors, doesn't exist, or needs a login"):
        load_teacher("hf://timm/another@main")
    assert [path.name for path in (tmp_path / "home/timm").iterdir()] == ["timm--test_resnet.r160_in1k--main"], (
        "nothing half is left"
    )


def test_our_own_folder_by_timms_address_and_a_damaged_one(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(TEACHER, copy)
    image = torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(load_teacher(f"local-dir:{copy}").pool(image), load_backbone(TEACHER).pool(image))
    (copy / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ZooError, match="task.teacher is "):
        load_teacher(str(copy))


def test_senseless_arguments():
    for arguments in ({"relational": -1.0}, {"outputs": 0}):
        with pytest.raises(ZooError, match=f"task.{next(iter(arguments))} is "):
            _task(**arguments)

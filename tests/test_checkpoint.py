from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from card_example import METRIC, a_card
from PIL import Image

import zoo
from zoo import card as cards
from zoo import paths
from zoo.card import read_card
from zoo.checkpoint import read as reading
from zoo.checkpoint import write as checkpoint
from zoo.checkpoint.read import load_backbone
from zoo.checkpoint.write import export, update_card
from zoo.errors import ZooError
from zoo.tasks.load import load_task

BACKBONES = {
    "resnet": ("test_resnet", 32, {"output_stride": 8}),
    "vit": ("test_vit", 28, {"patch_size": 7, "class_token": False, "global_pool": "avg", "fc_norm": False}),
    "grey": ("test_resnet", 32, {"in_chans": 1}),
    "convnext": ("test_convnext", 32, {"patch_size": 2}),
}


def make(kind: str = "resnet", seed: int = 0):
    name, size, keywords = BACKBONES[kind]
    torch.manual_seed(seed)
    task = zoo.create_task("simclr", zoo.create_backbone(name, size=size, **keywords), hidden=32, outputs=16)
    task.seed = 7
    task.train()
    with torch.no_grad():  # running statistics that differ from their beginning
        task.backbone.pool(torch.rand(8, 1 if kind == "grey" else 3, size, size))
    return task.eval()


def a_card_for(task, **changes) -> dict:
    card = a_card(seed=7, **changes)
    card["data"] |= {"size": task.backbone.size, "channels": task.backbone.channels}
    return card


@pytest.fixture
def saved(tmp_path):
    task = make()
    return task, export(task, tmp_path / "run" / "checkpoint", a_card_for(task), {"views": torch.rand(3, 20, 30)})


def replace_file(folder, name: str, data: bytes) -> None:
    """Change a file and the card with it, as somebody would who builds a checkpoint by hand."""
    (folder / name).write_bytes(data)
    card = json.loads((folder / "zoo.json").read_text())
    card["files"] = [cards.entry_for(name, data) if entry["path"] == name else entry for entry in card["files"]]
    (folder / "zoo.json").write_text(json.dumps(card))


@pytest.mark.parametrize("kind", BACKBONES)
def test_timm_alone_gives_the_same_features_to_the_bit(kind, tmp_path):
    task = make(kind)
    folder = export(task, tmp_path / "checkpoint", a_card_for(task))
    images = torch.rand(4, task.backbone.channels, task.backbone.size, task.backbone.size)
    with torch.no_grad():
        wanted, normal = task.backbone.pool(images), task.backbone.normalize(images)
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(plain(normal), wanted)
        model, _ = reading.load(folder)
        assert type(model) is type(plain) and torch.equal(model(normal), wanted)
        assert not any(module.__class__.__module__.startswith("zoo") for module in model.modules())
        assert torch.equal(load_backbone(folder).pool(images), wanted)
    assert plain.pretrained_cfg["mean"] == task.backbone.mean or list(plain.pretrained_cfg["mean"]) == list(
        task.backbone.mean
    )
    assert plain.num_classes == 0 and tuple(plain.pretrained_cfg["input_size"]) == tuple(images.shape[1:])


def test_timm_alone_in_another_process(saved):
    task, folder = saved
    code = (
        "import sys, timm, torch; m = timm.create_model('local-dir:' + sys.argv[1], pretrained=True).eval(); "
        "print(m(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)).double().sum().item().hex(), 'zoo' in "
        "sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.split()
    with torch.no_grad():
        here = task.backbone.model(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)).double().sum().item()
    assert float.fromhex(answer[0]) == pytest.approx(here, rel=1e-6) and answer[1] == "False"


def test_the_task_comes_back_with_its_heads(saved):
    task, folder = saved
    back = load_task(folder)
    assert back.name == "simclr" and back.arguments == task.arguments and back.seed == 7 and not back.training
    assert back.state_dict().keys() == task.state_dict().keys()
    assert all(torch.equal(value, task.state_dict()[key]) for key, value in back.state_dict().items())


def test_the_folder_holds_what_the_card_lists(saved):
    task, folder = saved
    card = read_card(folder)
    assert {path.name for path in folder.iterdir()} == {entry["path"] for entry in card["files"]} | {
        "zoo.json",
        "README.md",
    }
    assert card["parameters"] == sum(p.numel() for p in task.backbone.model.parameters())
    assert card["task"] == {"name": "simclr", **task.arguments} and card["backbone"] == {
        "name": "test_resnet",
        "output_stride": 8,
    }
    assert Image.open(folder / "views.png").size == (900, 600)
    assert {path.name for path in folder.parent.iterdir()} == {"checkpoint"}
    for path in folder.iterdir():  # nothing in it is a pickle
        assert path.suffix in (".safetensors", ".json", ".png", ".md")
        with pytest.raises((pickle.UnpicklingError, EOFError, KeyError, ValueError, IndexError, AttributeError)):
            pickle.loads(path.read_bytes())


def test_equal_weights_give_equal_files(tmp_path):
    folders = [export(make(), tmp_path / name, a_card_for(make())) for name in ("a", "b")]
    other = export(make(seed=1), tmp_path / "c", a_card_for(make()))
    assert read_card(folders[0]) == read_card(folders[1])
    assert read_card(other)["files"] != read_card(folders[0])["files"]


def test_saving_and_loading_leave_the_generator_alone(saved):
    task, folder = saved
    torch.manual_seed(5)
    before = torch.get_rng_state()
    export(task, folder.parent / "again", a_card_for(task))
    load_task(folder)
    reading.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_export_takes_the_place_of_the_one_before(saved):
    _, folder = saved
    other = make(seed=3)
    export(other, folder, a_card_for(other))
    assert not (folder / "views.png").exists() and [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    assert torch.equal(
        load_backbone(folder).model.state_dict()["conv1.0.weight"], other.backbone.model.state_dict()["conv1.0.weight"]
    )


def test_transform_is_what_the_backbone_expects(saved):
    task, folder = saved
    _, transform = reading.load(folder)
    picture = Image.effect_noise((48, 40), 80).convert("RGB").resize((32, 32))
    tensor = (
        torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)[None] / 255
    )
    assert torch.allclose(transform(picture)[None], task.backbone.normalize(tensor))
    assert transform(Image.new("L", (100, 40), 128)).shape == (3, 32, 32)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(picture), transform(picture))
    assert repr(transform).startswith("Transform(upright RGB, resize 32 antialiased, centre crop 32, mean (")
    with pytest.raises(ZooError, match="the transform takes a PIL image, and this is a Tensor"):
        transform(tensor)


@pytest.mark.parametrize(
    "kind", ["RGB", "L", "P", "CMYK", "turned by EXIF", "transparent", "transparent P", "16 bits", "strip"]
)
def test_transform_reads_a_picture_as_a_folder_does(kind, saved, tmp_path):
    """Otherwise features of a picture would be others than those that were trained and measured."""
    _, folder = saved
    model, transform = reading.load(folder)
    noise = np.random.default_rng(0).integers(0, 256, (48, 70, 4), dtype=np.uint8)
    image, options = Image.fromarray(noise[..., :3]), {}
    if kind in ("L", "P", "CMYK"):
        image = image.convert(kind)
    elif kind == "turned by EXIF":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    elif kind.startswith("transparent"):
        image = Image.fromarray(noise)
        image = image if kind == "transparent" else image.quantize(64)
    elif kind == "16 bits":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    elif kind == "strip":
        image = image.resize((400, 8))
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        image.save(tmp_path / f"pictures/{number}.{'tif' if kind == 'CMYK' else 'png'}", **options)
    (path, _) = sorted((tmp_path / "pictures").iterdir())
    read = zoo.load_data(f"folder:{tmp_path / 'pictures'}", size=32).fields["image"][:1].float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transform.mean, transform.std))
    assert torch.allclose(transform(Image.open(path))[None], (read - mean) / std, atol=1e-6)


def test_transform_agrees_with_timms_own(saved):
    _, folder = saved
    model, transform = reading.load(folder)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(plain))
    random.seed(0)
    picture = Image.effect_noise((96, 64), 80).convert("RGB")
    assert (transform(picture) - theirs(picture)).abs().max() < 2.5 / 255 / min(
        transform.std
    )  # theirs rounds to whole levels on the way


def test_a_grey_transform_for_a_grey_backbone(tmp_path):
    task = make("grey")
    _, transform = reading.load(export(task, tmp_path / "c", a_card_for(task)))
    assert transform(Image.new("RGB", (64, 48), (255, 0, 0))).shape == (1, 32, 32) and "upright grey" in repr(transform)


@pytest.mark.parametrize("name", ["model.safetensors", "heads.safetensors", "config.json", "views.png"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "longer", "link"])
def test_damage_is_seen_before_anything_is_parsed(saved, name, how, monkeypatch):
    _, folder = saved
    path, data = folder / name, (folder / name).read_bytes()
    path.unlink()
    if how == "link":
        (folder.parent / "elsewhere").write_bytes(data)
        path.symlink_to(folder.parent / "elsewhere")
    elif how != "missing":
        middle = len(data) // 2
        path.write_bytes(
            {
                "truncated": data[:-1],
                "longer": data + b"\0",
                "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            }[how]
        )
    parsed = []
    monkeypatch.setattr(safetensors.torch, "load", lambda data: parsed.append(data))
    for load in (load_backbone, load_task, read_card, reading.load):
        with pytest.raises(ZooError, match=name):
            load(folder)
    assert parsed == []


def test_foreign_and_partial_weights_are_refused_with_the_share_that_fits(saved):
    task, folder = saved
    state = task.backbone.model.state_dict()
    some = {key: value for key, value in state.items() if not key.startswith("layer4")}
    replace_file(folder, "model.safetensors", checkpoint.weights(some))
    with pytest.raises(ZooError, match=r"fits only \d+\.\d % of the parameters"):
        load_backbone(folder)
    replace_file(folder, "model.safetensors", checkpoint.weights({"evil.weight": torch.ones(3)}))
    with pytest.raises(ZooError, match=r"fits only 0\.0 %"):
        reading.load(folder)
    replace_file(folder, "model.safetensors", checkpoint.weights(state | {"more": torch.ones(1)}))
    with pytest.raises(ZooError, match=r"100\.0 % .*first difference: more"):
        load_backbone(folder)
    replace_file(folder, "model.safetensors", checkpoint.weights({key: value.double() for key, value in state.items()}))
    with pytest.raises(ZooError, match="fits only"):
        load_backbone(folder)
    replace_file(folder, "model.safetensors", checkpoint.weights(state))
    replace_file(folder, "heads.safetensors", checkpoint.weights({}))
    with pytest.raises(ZooError, match="heads.safetensors fits only 0.0 %"):
        load_task(folder)
    load_backbone(folder)  # the heads aren't its business


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04\x95", b"\xff" * 64, (1 << 62).to_bytes(8, "little") + b"{}", b"\x02\0\0\0\0\0\0\0[]"]
)
def test_what_is_no_safetensors_is_refused(saved, data):
    _, folder = saved
    replace_file(folder, "model.safetensors", data)
    with pytest.raises(ZooError, match="not a whole safetensors file|fits only"):
        load_backbone(folder)


class Canary:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickles_beside_or_instead_of_the_weights_are_never_opened(saved, tmp_path):
    _, folder = saved
    canary = tmp_path / "canary"
    for name in ("pytorch_model.bin", "model.pth", "model.ckpt"):
        (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    load_task(folder)
    reading.load(folder)
    (folder / "model.safetensors").unlink()  # no fallback to them either
    with pytest.raises(ZooError, match="model.safetensors is missing"):
        reading.load(folder)
    (folder / "model.safetensors").write_bytes(b"")
    replace_file(folder, "model.safetensors", pickle.dumps(Canary(canary)))
    with pytest.raises(ZooError):
        reading.load(folder)
    assert not canary.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "resnet18"},
        {"num_classes": 10},
        {"model_args": {"checkpoint_path": "/tmp/x"}},
        {"model_args": {}},
        {"extra": 1},
        {"pretrained_cfg": {"url": "https://example.org/x.pth"}},
        {"pretrained_cfg": {"custom_load": True}},
        {"pretrained_cfg": 3},
    ],
)
def test_a_config_that_leads_timm_elsewhere_is_refused(saved, change):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    if isinstance(change.get("pretrained_cfg"), dict):
        change = {"pretrained_cfg": config["pretrained_cfg"] | change["pretrained_cfg"]}
    replace_file(folder, "config.json", json.dumps(config | change).encode())
    with pytest.raises(ZooError, match="config.json"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"backbone": {"name": "os.system"}}, "not a backbone"),
        ({"backbone": {"name": "test_resnet", "checkpoint_path": "x"}}, "checkpoint_path"),
        ({"backbone": {"name": "test_resnet", "nonsense": 1}}, "nonsense"),
        ({"task": {"name": "os:system"}}, "os:system"),
        ({"task": {"name": "simclr", "tau": 1}}, "tau"),
        (
            {"task": {"name": "simclr", "layers": "two"}},
            "zoo.json: the task simclr can't be made with {'layers': 'two'}",
        ),
    ],
)
def test_a_card_builds_by_registered_names_only(saved, part, words):
    _, folder = saved
    card = json.loads((folder / "zoo.json").read_text()) | part
    (folder / "zoo.json").write_text(json.dumps(card))
    with pytest.raises(ZooError, match=words):
        load_task(folder)


def test_update_card_changes_card_readme_and_config_together(saved):
    _, folder = saved
    update_card(folder, license="CC0-1.0", metrics=[METRIC | {"value": 99.5}])
    assert read_card(folder)["license"] == "CC0-1.0"
    assert "| 99.5 |" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["license"] == "CC0-1.0"
    load_task(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for wrong in ({"metrics": [{"value": 1}]}, {"license": 3}, {"nonsense": 1}, {"files": []}, {"seed": float("nan")}):
        with pytest.raises(ZooError):
            update_card(folder, **wrong)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_update_card_refuses_damage_and_the_cache(saved, tmp_path, monkeypatch):
    _, folder = saved
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "hub").mkdir(parents=True)
    os.replace(folder, tmp_path / "home" / "hub" / "x")
    with pytest.raises(ZooError, match="the cache's copy"):
        update_card(tmp_path / "home" / "hub" / "x", license="MIT")
    folder = export(make(), tmp_path / "c", a_card_for(make()))
    (folder / "heads.safetensors").write_bytes(b"")
    with pytest.raises(ZooError, match="heads.safetensors"):
        update_card(folder, license="MIT")


@pytest.mark.parametrize("text", ["[]", "{", '{"pretrained_cfg": 1}'])
def test_update_card_refuses_a_configuration_that_is_none(saved, text):
    _, folder = saved
    (folder / "config.json").write_text(text)
    card = json.loads((folder / "zoo.json").read_text())
    (entry,) = (file for file in card["files"] if file["path"] == "config.json")
    entry.update(bytes=len(text)) if "bytes" in entry else entry.update(size=len(text))
    entry["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "zoo.json").write_text(json.dumps(card))
    with pytest.raises(ZooError, match="config.json"):
        update_card(folder, license="MIT")


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    task = make()
    with torch.no_grad():
        next(task.projector.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(ZooError, match=r"projector\.\S+ of heads.safetensors has values that aren't finite"):
        export(task, tmp_path / "c", a_card_for(task))
    assert list(tmp_path.iterdir()) == []


def test_a_card_of_another_size_is_refused(tmp_path):
    with pytest.raises(ZooError, match="16 pixels and the backbone was made for 32"):
        export(make(), tmp_path / "c", a_card())


@pytest.mark.parametrize("at", range(5))
def test_a_full_disk_leaves_the_old_checkpoint_whole(saved, at, monkeypatch):
    _, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    real, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) > 2 * at:  # each file is synced, then its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle)

    monkeypatch.setattr(paths.os, "fsync", fsync)
    with pytest.raises(ZooError, match=r"can't be written: the disk is full and [\d,]+ bytes are needed"):
        export(make(seed=2), folder, a_card_for(make()))
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    load_task(folder)


def test_picture_names_become_plain_file_names(tmp_path):
    task = make()
    folder = export(
        task,
        tmp_path / "c",
        a_card_for(task),
        {"Nearest Pictures/é": torch.full((3, 4, 4), float("nan")), "..": torch.rand(3, 1200, 4)},
    )
    assert {path.name for path in folder.glob("*.png")} == {"nearest-pictures.png", "figure.png"}

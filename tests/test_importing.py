"""Weights from elsewhere become a checkpoint of ours, equal to the last bit, and nothing in them is ever run."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import lightning as L
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

import zoo
from zoo import card as cards
from zoo import cli
from zoo.checkpoint.tensors import read_tensors
from zoo.errors import ZooError
from zoo.importing import import_checkpoint
from zoo.tasks.imported import Imported
from zoo.tasks.load import load_task


class Foreign(L.LightningModule):
    """Trained by plain Lightning, in the two shapes that are common: lightly's Sequential of children, solo-learn's
    named backbone.
    """

    def __init__(self, shape: str, options: object = None):
        super().__init__()
        self.save_hyperparameters(ignore=["shape"])
        self.model = [timm.create_model("test_resnet", num_classes=10)]  # in a list, so that it isn't a part by itself
        if shape == "lightly":
            self.backbone = nn.Sequential(*list(self.model[0].children())[:-1])
        else:
            self.model[0].reset_classifier(0)
            self.backbone = self.model[0]
        self.projection_head = nn.Linear(self.model[0].num_features, 8)
        if shape == "momentum":
            self.momentum_backbone = timm.create_model("test_resnet", num_classes=0)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.projection_head(self.backbone(batch).flatten(1)).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def trained(folder: Path, shape: str, options: object = None) -> tuple[Path, Foreign]:
    """A .ckpt that Lightning itself wrote after two steps, with its optimizer and hyper-parameters in it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = Foreign(shape, options)
        trainer = L.Trainer(
            max_steps=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, torch.utils.data.DataLoader(torch.rand(16, 3, 64, 64), batch_size=8))
        trainer.save_checkpoint(folder / "foreign.ckpt")
    return folder / "foreign.ckpt", module.eval()


def features(module: Foreign, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module.backbone(x).flatten(1)


X = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", ["lightly", "named"])
def test_a_checkpoint_that_lightning_wrote_gives_equal_features(shape, tmp_path):
    file, module = trained(tmp_path, shape, {"lr": 0.1})
    found = import_checkpoint(file, "test_resnet", tmp_path / "made", size=64)
    assert (found.prefix, found.share, found.missing) == ("state_dict.backbone.", 1.0, ()) and found.left_aside == 2
    model, _ = zoo.load(tmp_path / "made")
    plain = timm.create_model(f"local-dir:{tmp_path / 'made'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(model(X), features(module, X)) and torch.equal(plain(X), model(X))
    card = cards.read_card(tmp_path / "made")
    assert (
        card["parent"] == f"foreign.ckpt sha256:{cards.sha256(file)}"
        and card["license"] is None
        and card["metrics"] == []
    )
    assert (
        card["task"] == {"name": "imported"}
        and card["data"]["name"] == "unknown"
        and card["summary"] == "Weights imported from foreign.ckpt."
    )


def state(seed: int = 0, **arguments) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model("test_resnet", num_classes=0, **arguments).state_dict()


def same(folder: Path, weights: dict[str, Tensor]) -> bool:
    model, _ = zoo.load(folder)
    return all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda s: s, ""),
        (lambda s: {"state_dict": s}, "state_dict."),
        (lambda s: {f"module.encoder.{k}": v for k, v in s.items()}, "module.encoder."),
        (lambda s: {"teacher": {f"_orig_mod.{k}": v for k, v in s.items()}, "epoch": 3}, "teacher._orig_mod."),
        (
            lambda s: (
                {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")}
                | {"fc.weight": torch.ones(10, 256)}
            ),
            "",
        ),
    ],
)
def test_shapes_of_state_dicts(wrap, prefix, tmp_path):
    weights = state()
    torch.save(wrap(weights), tmp_path / "w.pth")
    found = import_checkpoint(tmp_path / "w.pth", "test_resnet", tmp_path / "made", size=32)
    assert found.prefix == prefix and found.share == 1.0 and same(tmp_path / "made", weights)


def test_safetensors_halves_and_keywords(tmp_path):
    weights = {key: value.half() if value.is_floating_point() else value for key, value in state(in_chans=1).items()}
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    import_checkpoint(tmp_path / "w.safetensors", "test_resnet", tmp_path / "made", size=32, license="MIT", in_chans=1)
    assert same(
        tmp_path / "made",
        {key: value.float() if value.is_floating_point() else value for key, value in weights.items()},
    )
    assert cards.read_card(tmp_path / "made")["license"] == "MIT"


@pytest.mark.filterwarnings("ignore")
def test_two_networks_that_fit_are_a_choice(tmp_path):
    file, module = trained(tmp_path, "momentum")
    with pytest.raises(
        ZooError,
        match=r"holds 2 networks that fit equally well, .* state_dict.backbone. and state_dict.momentum_backbone.; "
        r"choose one",
    ):
        import_checkpoint(file, "test_resnet", tmp_path / "made", size=64)
    found = import_checkpoint(file, "test_resnet", tmp_path / "made", size=64, prefix="momentum_backbone")
    assert found.prefix == "state_dict.momentum_backbone." and same(
        tmp_path / "made", module.momentum_backbone.state_dict()
    )
    import_checkpoint(file, "test_resnet", tmp_path / "other", size=64, prefix="backbone.")
    assert same(tmp_path / "other", module.backbone.state_dict())
    with pytest.raises(
        ZooError, match="no tensors of this backbone that begin with 'bakbone'; did you mean state_dict.backbone"
    ):
        import_checkpoint(file, "test_resnet", tmp_path / "third", prefix="bakbone")
    weights = state()
    torch.save({"a": weights, "b": weights}, tmp_path / "twice.pth")  # the same one twice is no choice
    import_checkpoint(tmp_path / "twice.pth", "test_resnet", tmp_path / "third", size=32)


def test_what_fits_in_part_is_refused_with_the_share(tmp_path):
    weights = state()
    torch.save({key: value for key, value in weights.items() if not key.startswith("layer4")}, tmp_path / "w.pth")
    with pytest.raises(
        ZooError,
        match=r"holds \d\d\.\d % of the parameters of test_resnet \(the first that it lacks: layer4.*--allow-partial",
    ):
        import_checkpoint(tmp_path / "w.pth", "test_resnet", tmp_path / "made", size=32)
    assert not (tmp_path / "made").exists()
    for folder in ("made", "again"):
        found = import_checkpoint(tmp_path / "w.pth", "test_resnet", tmp_path / folder, size=32, allow_partial=True)
    assert 0.1 < found.share < 0.9 and any(key.startswith("layer4") for key in found.missing)
    card, other = cards.read_card(tmp_path / "made"), cards.read_card(tmp_path / "again")
    assert f"It holds {100 * found.share:.1f} % of the parameters; the others are random." in card["summary"]
    assert card["files"] == other["files"], "what stays random is the same each time"
    torch.save({"layer.weight": torch.ones(3)}, tmp_path / "none.pth")
    with pytest.raises(ZooError, match="none of the 1 tensors in .* is one of test_resnet's"):
        import_checkpoint(tmp_path / "none.pth", "test_resnet", tmp_path / "x", allow_partial=True)
    torch.save({key: value * torch.nan for key, value in weights.items()}, tmp_path / "nan.pth")
    with pytest.raises(ZooError, match="aren't finite"):
        import_checkpoint(tmp_path / "nan.pth", "test_resnet", tmp_path / "x")
    with pytest.raises(ZooError, match="exists already"):
        import_checkpoint(tmp_path / "w.pth", "test_resnet", tmp_path / "made", allow_partial=True)


# ---- nothing in it is run ------------------------------------------------------------------------


class Canary:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("way", ["torch.save", "old torch.save", "pickle", "named .safetensors"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(way, tmp_path):
    canary, file = tmp_path / "canary", tmp_path / ("w.safetensors" if way == "named .safetensors" else "w.ckpt")
    content = {"state_dict": state(), "hyper_parameters": Canary(canary)}
    if way.endswith("torch.save"):
        torch.save(content, file, _use_new_zipfile_serialization=way == "torch.save")
    else:
        file.write_bytes(pickle.dumps(content))
    for allow in (False, True):
        with pytest.raises(ZooError) as caught:
            import_checkpoint(file, "test_resnet", tmp_path / "made", allow_partial=allow)
    assert (
        "weights_only=False" not in str(caught.value)
        and str(file) in str(caught.value)
        and "\n" not in str(caught.value)
    )
    assert not canary.exists() and not (tmp_path / "made").exists()
    if way.endswith("torch.save"):
        torch.load(file, weights_only=False)
        assert canary.exists(), "it would have sung"


@pytest.mark.filterwarnings("ignore")
def test_objects_among_the_hyper_parameters_are_named(tmp_path):
    file, _ = trained(tmp_path, "named", argparse.Namespace(lr=1))
    with pytest.raises(
        ZooError,
        match=r"holds more than weights: it would import argparse.Namespace, which is not done; .*write its weights "
        r"alone",
    ):
        import_checkpoint(file, "test_resnet", tmp_path / "made")


@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"])
def test_tensors_without_plain_numbers_are_named(odd, tmp_path):
    torch.save({"net": {"a": torch.zeros(2), "b": odd}}, tmp_path / "w.pth")
    with pytest.raises(ZooError, match=r"net\.b is a tensor without plain numbers"):
        read_tensors(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04.", b"PK\3\4" + bytes(100), b"hello", (1 << 62).to_bytes(8, "little") + b"{}"]
)
@pytest.mark.parametrize("name", ["w.ckpt", "w.safetensors"])
def test_files_that_hold_no_weights(data, name, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ZooError) as caught:
        read_tensors(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "weights_only" not in str(caught.value)
    with pytest.raises(ZooError, match="there is no file"):
        read_tensors(tmp_path / "gone.ckpt")


# ---- what comes of it ----------------------------------------------------------------------------


def test_the_command_line_and_what_the_checkpoint_is_good_for(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = state(output_stride=8)
    torch.save({f"net.{key}": value for key, value in weights.items()}, "w.pth")
    assert (
        cli.main(
            [
                "import",
                "w.pth",
                "--backbone",
                "test_resnet",
                "--backbone.output_stride",
                "8",
                "--size",
                "16",
                "--out",
                "made",
                "--json",
            ]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert (told["folder"], told["prefix"], told["matched"], told["missing"]) == ("made", "net.", 1.0, []) and same(
        Path("made"), weights
    )
    assert cards.read_card("made")["backbone"] == {"name": "test_resnet", "output_stride": 8}
    assert zoo.adapt("made", "digits", mode="knn", per_class=5).value > 10
    assert {row["features"] for row in zoo.evaluate("made", "digits", protocols=("knn",), labels=(5,))} == {
        "backbone",
        "random weights",
        "pixels",
    }
    assert Path(zoo.report("page.html", [Path("made")])).is_file()
    assert cli.main(["info", "made"]) == 0 and "Weights imported from w.pth" in capsys.readouterr().out
    assert cli.main(["push", "made", "--to", "hub"]) == 2 and "has no licence yet" in capsys.readouterr().err
    assert cli.main(["push", "made", "--to", "hub", "--license", "MIT"]) == 0
    assert isinstance(load_task("made"), Imported)
    capsys.readouterr()
    assert cli.main(["import", "w.pth", "--backbone", "test_resnet", "--task.x", "1", "--out", "x"]) == 2
    assert "--task.x is nothing that zoo import takes" in capsys.readouterr().err


def test_to_be_measured_it_asks_for_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(state(), "w.pth")
    import_checkpoint("w.pth", "test_resnet", "made", size=16)
    for more in ([], ["--save"]):
        assert cli.main(["evaluate", "made", *more]) == 2
        assert capsys.readouterr().err == (
            "zoo: made was imported, and its card doesn't say what data it was trained on; name a set with labels to "
            "measure it on, as in  zoo evaluate made --data NAME  or --data folder:PATH\n"
        )


def test_it_is_no_task_to_train_or_take(tmp_path):
    recipe = {
        "data": {"name": "digits", "batch_size": 8},
        "backbone": {"name": "test_resnet"},
        "task": {"name": "imported"},
        "trainer": {"max_steps": 1},
    }
    with pytest.raises(ZooError, match="has no pretext task that could be trained"):
        zoo.pretrain(recipe, out=tmp_path / "run", progress=False)
    assert "imported" not in {entry.name for entry in zoo.list_tasks()}
    with pytest.raises(ZooError, match="is taken by zoo.tasks.imported:Imported"):
        zoo.register_task("imported")(type("Mine", (Imported,), {}))

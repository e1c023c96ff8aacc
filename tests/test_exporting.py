"""A network as one file for other runtimes, from what training and adapting really wrote."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from run_example import hub, place, refused, train, trained, zoo_says  # noqa: F401

import zoo
from zoo import cli
from zoo.card import read_card
from zoo.checkpoint import runtime as exporting
from zoo.errors import ZooError

FORMATS = list(exporting.FORMATS)


def run(file: Path, image: torch.Tensor) -> torch.Tensor:
    """As somebody does who has the file alone."""
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(image)
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])


def said(file: Path) -> dict:
    """What the file says of itself."""
    if file.suffix == ".pt2":
        extra = {"zoo.json": ""}
        torch.export.load(file, extra_files=extra)
        return json.loads(extra["zoo.json"])
    import onnx

    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict[str, Path]:
    """Runs of a ViT without, and of one with its class token, and of a network of grey pictures."""
    place = tmp_path_factory.mktemp("others")
    vit = {"name": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    made = {
        "vit": {"backbone": vit | {"class_token": False, "global_pool": "avg"}},
        "token": {"backbone": vit},
        "grey": {"backbone": {"name": "test_resnet", "in_chans": 1}},
    }
    return {name: train(place / name, trainer={"max_steps": 2}, **changes) for name, changes in made.items()}


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("which", ["resnet", "vit", "token", "grey"])
def test_the_file_gives_what_timm_gives(which, to, trained, others):  # noqa: F811
    """For any number of pictures, from 0 to 1 as they are: the normalisation is in the file."""
    folder = trained if which == "resnet" else others[which]
    made = zoo.export_checkpoint(folder, to, f"there{exporting.FORMATS[to]}")
    model, transform = zoo.load(folder)
    assert (
        made.file.is_file()
        and made.kind == "features"
        and made.outputs == model.num_features
        and made.difference <= 1e-5
    )
    assert made.input == (1 if which == "grey" else 3, 16, 16)
    for count in (1, 2, 5):
        image = torch.rand(count, *made.input, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            wanted = model(
                (image - torch.tensor(transform.mean).view(1, -1, 1, 1)) / torch.tensor(transform.std).view(1, -1, 1, 1)
            )
        torch.testing.assert_close(run(made.file, image), wanted, rtol=1e-4, atol=1e-5)
    facts, card = said(made.file), read_card(folder / "checkpoint")
    assert (facts["name"], facts["output"], facts["attribution"]) == (
        card["name"],
        "features",
        card["data"]["attribution"],
    )
    assert facts["license"] == (card["license"] if to == "torch-export" or card["license"] else "null")


@pytest.mark.parametrize("to", FORMATS)
def test_a_classifier_says_what_it_said(to, trained):  # noqa: F811
    adapted = zoo.adapt(trained, "digits", labels=0.2, out="classifier", baselines=False)
    made = zoo.export_checkpoint("classifier", to)
    assert made.kind == "logits" and made.outputs == 10 and made.file == Path(f"small-digits{exporting.FORMATS[to]}")
    classes = said(made.file)["classes"]
    assert (json.loads(classes) if to == "onnx" else classes) == list(adapted.classes)
    model = timm.create_model("local-dir:classifier", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    batch = next(zoo.create_data("digits", size=16).batches("test", 64))
    pictures = batch["image"].expand(-1, 3, -1, -1)
    with torch.no_grad():
        wanted = torch.stack(
            [
                model(transform(Image.fromarray(np.asarray(picture.permute(1, 2, 0)))).unsqueeze(0))[0]
                for picture in pictures
            ]
        )
    found = run(made.file, pictures.float() / 255)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert (found.argmax(1) == batch["label"]).float().mean() > 0.3


def test_each_format_is_written_and_offered():
    (offered,) = [action.choices for action in cli.build_parser()[1]["export"]._actions if action.dest == "to"]
    assert offered == FORMATS == list(exporting._WRITE)


def test_from_the_command_line(zoo_says, refused, capsys):  # noqa: F811
    code, out, err = zoo_says("export", "small", "--hub", "{hub}")
    assert (code, err) == (0, "") and out.startswith(
        "small.pt2 takes float pictures (batch, 3, 16, 16) in [0, 1] and gives "
    )
    before = Path("small.pt2").read_bytes()
    assert refused("export", "{run}") == "small.pt2 exists already; remove it, or add --out ANOTHER-FILE"
    assert Path("small.pt2").read_bytes() == before
    assert "doesn't know --to 'onx'; did you mean onnx?" in refused("export", "{run}", "--to", "onx")
    assert "has no checkpoint smal; did you mean small?" in refused("export", "smal", "--hub", "{hub}")
    assert "timm needs none, since it loads the folder" in _sentence("{run}", to="timm")


def _sentence(checkpoint: str | Path, **given) -> str:
    with pytest.raises(ZooError) as error:
        zoo.export_checkpoint(checkpoint, **given)
    return str(error.value)


def test_without_the_libraries_of_onnx(trained, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "and onnxruntime isn't installed; install pretext-zoo[onnx], or export to torch-export" in _sentence(
        trained, to="onnx"
    )
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_with_other_outputs_is_not_written(to, trained, monkeypatch):  # noqa: F811
    write = exporting._WRITE[to]

    def wrong(*given):
        data, run = write(*given)
        return data, lambda image: run(image) * 1.01

    monkeypatch.setitem(exporting._WRITE, to, wrong)
    assert (
        f"the outputs of small as {to} differ from torch's by 1.0e-02 of the largest, so it wasn't written"
        in _sentence(trained, to=to)
    )
    monkeypatch.setitem(exporting._WRITE, to, lambda *given: 1 / 0)
    assert f"torch can't export small (test_resnet) as {to}: ZeroDivisionError" in _sentence(trained, to=to)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", lambda text: text.replace("test_resnet", "nothing"), "'nothing' is not a backbone"),
        (
            "config.json",
            lambda text: text.replace('"label_names"', '"names"'),
            "is not a whole classifier of zoo adapt: KeyError",
        ),
        (
            "config.json",
            lambda text: text.replace(
                '"input_size": [\n   3,\n   16,\n   16', '"input_size": [\n   3,\n   1000000,\n   16'
            ),
            "can't be of pictures of 1000000",
        ),
        ("adapted.json", lambda text: text[:-20], "adapted.json is not valid JSON"),
        ("model.safetensors", lambda text: text[:5000], "is not a whole classifier of zoo adapt"),
        ("model.safetensors", lambda text: None, "can't be read"),
    ],
)
def test_a_damaged_classifier(file, change, said, trained):  # noqa: F811
    zoo.adapt(trained, "digits", per_class=1, out="classifier", baselines=False)
    path = Path("classifier") / file
    text = path.read_text(encoding="latin-1")
    changed = change(text)
    assert changed != text
    path.unlink() if changed is None else path.write_text(changed, encoding="latin-1")
    assert said in _sentence("classifier")
    assert [path.name for path in Path().iterdir()] == ["classifier"]


def test_the_name_of_a_file_is_never_a_strangers_path(trained):  # noqa: F811
    zoo.adapt(trained, "digits", per_class=1, out="classifier", baselines=False)
    facts = json.loads(Path("classifier/adapted.json").read_text())
    Path("classifier/adapted.json").write_text(json.dumps(facts | {"checkpoint": "../../elsewhere"}))
    assert zoo.export_checkpoint("classifier").file == Path("elsewhere-digits.pt2")
    shutil.rmtree("classifier")

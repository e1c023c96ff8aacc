"""Every sense from recipe to export: a task of text, a task of two towers, and a masked task on rectangles.

Each is trained, killed, resumed bitwise, written, pushed, pulled, evaluated, reported and exported, in one process and
in two.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import timm
import torch
import towers_example
from killing import assert_same, killed
from launching import torchrun
from recipe_example import sentence
from site_example import as_found, site  # noqa: F401
from towers_example import POINTS, TASKS, recipe

import zoo
from zoo.card import read_card, towers_of
from zoo.checkpoint.read import load_backbone
from zoo.evaluate.table import evaluate
from zoo.hub.hub import pull
from zoo.hub.push import push
from zoo.report.page import write_page
from zoo.tasks.base import PretextTask
from zoo.tasks.load import load_task
from zoo.testing import check_task

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def installed(site, monkeypatch, tmp_path):  # noqa: F811
    """The miniature plugin is installed, and this folder can be imported by processes that a test starts."""
    site.install("zoo-towers", POINTS.encode())
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ["PYTHONPATH"]]))
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Finished runs by task, each trained once."""
    return {}


def trained(kind: str, runs: dict[str, Path], tmp_path: Path) -> Path:
    if kind not in runs:
        runs[kind] = zoo.pretrain(recipe(kind), out=tmp_path.parent / f"whole-{kind}", progress=False)
    return runs[kind]


def losses(run: Path) -> list[float]:
    """The training losses that a run wrote, in order."""
    with open(run / "metrics.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row.get("loss")]


def batch_of(kind: str) -> dict:
    data = (towers_example.BANDS if kind == "hidden-bands" else towers_example.SQUARES).load()
    return {name: column[:8] for name, column in data.fields.items()}


@pytest.mark.parametrize("kind", TASKS)
def test_it_keeps_the_contract(kind):
    check_task(kind)


@pytest.mark.parametrize("kind", TASKS)
def test_a_killed_run_goes_on_bitwise(kind, runs, tmp_path):
    whole = trained(kind, runs, tmp_path)
    assert killed(recipe(kind), tmp_path / "run", PretextTask, "training_step", 4)
    zoo.pretrain(recipe(kind), out=tmp_path / "run", resume=True, progress=False)
    assert_same(tmp_path / "run", whole)
    for file in sorted(path.relative_to(whole) for path in (whole / "checkpoint").rglob("*.safetensors")):
        assert (whole / file).read_bytes() == (tmp_path / "run" / file).read_bytes(), file


@pytest.mark.parametrize("kind", TASKS)
def test_two_processes_compute_what_one_does(kind, runs, tmp_path):
    whole = trained(kind, runs, tmp_path)
    code, out, error = torchrun("--nproc-per-node", "2", towers_example.__file__, kind, str(tmp_path / "two"))
    assert code == 0, error[-3000:]
    assert read_card(tmp_path / "two" / "checkpoint")["samples_seen"] == read_card(whole / "checkpoint")["samples_seen"]
    if kind == "two-towers":  # its views draw nothing, so both runs see the same samples and negatives
        one, two = (losses(run) for run in (whole, tmp_path / "two"))
        assert len(one) == len(two) > 0
        torch.testing.assert_close(torch.tensor(one), torch.tensor(two), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", TASKS)
def test_the_card_says_what_the_networks_read(kind, runs, tmp_path):
    folder = trained(kind, runs, tmp_path) / "checkpoint"
    card = read_card(folder)
    towers = towers_of(card)
    assert card["schema"] == 2 and {name: tower["reads"] for name, tower in towers.items()} == (
        {"image": "image", "text": "text"}
        if kind == "two-towers"
        else {"backbone": "image" if kind == "hidden-bands" else "text"}
    )
    assert card["data"]["size"] == ([128, 32] if kind == "hidden-bands" else 32) and card["data"]["channels"] == 1
    assert card["data"]["kinds"]["text"] == {"kind": "text", "length": 12}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {entry["path"] for entry in card["files"]} | {"zoo.json", "README.md"} == files
    if kind == "two-towers":
        assert {"config.json", "text/config.json", "text/model.safetensors", "text/tokenizer.json"} <= files


@pytest.mark.parametrize("kind", TASKS)
def test_from_checkpoint_to_hub_and_back(kind, runs, tmp_path):
    from shutil import copytree

    run = copytree(trained(kind, runs, tmp_path), tmp_path / "copy")
    zoo.checkpoint.write.update_card(run / "checkpoint", license="Apache-2.0", name=kind)
    push(run / "checkpoint", tmp_path / "hub")
    pulled = pull(kind, tmp_path / "hub")
    batch = batch_of(kind)
    with torch.no_grad():
        before, after = (load_task(folder).represent(batch) for folder in (run / "checkpoint", pulled))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    extra = pulled / ("text" if kind == "two-towers" else ".") / "note.bin"
    extra.parent.chmod(0o755)
    extra.write_bytes(b"x")
    assert any("note.bin" in problem for problem in zoo.hub.hub.verify(pulled))


@pytest.mark.parametrize("kind", TASKS)
def test_it_is_evaluated_beside_random_weights_and_raw_inputs(kind, runs, tmp_path):
    run = trained(kind, runs, tmp_path)
    rows = evaluate(run, protocols=("knn", "linear"), labels=(1.0,))
    names = {row["features"] for row in rows}
    assert (
        any(name.startswith("random weights") for name in names)
        and len(names) >= 3
        and all(0 <= row["value"] <= 100 for row in rows)
    )
    page = write_page(tmp_path / "page.html", [run / "checkpoint"]).read_text()
    assert kind in page and "hidden" not in page[:200]


def test_image_towers_open_in_timm_and_text_towers_in_transformers(runs, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    folder, batch = trained("two-towers", runs, tmp_path) / "checkpoint", batch_of("two-towers")
    image, text = load_backbone(folder, "image"), load_backbone(folder, "text")
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        x = image.normalize(image.prepare(batch["image"]))
        assert torch.equal(plain(x), image.pool(image.prepare(batch["image"])))
        read = text.prepare(batch["text"])
        theirs = AutoModel.from_pretrained(folder / "text").eval()
        assert torch.equal(theirs(**read).last_hidden_state, text.tokens(read))
    ours = AutoTokenizer.from_pretrained(folder / "text")(
        batch["text"], padding="max_length", truncation=True, max_length=12, return_tensors="pt"
    )
    assert torch.equal(ours["input_ids"], read["input_ids"])


def test_a_rectangle_is_exported(runs, tmp_path):
    folder = trained("hidden-bands", runs, tmp_path) / "checkpoint"
    found = zoo.export_checkpoint(folder, "torch-export", tmp_path / "bands.pt2")
    assert found.input[-2:] == (128, 32) or list(found.input)[-2:] == [128, 32]
    model, transform = zoo.load(folder)
    assert model(torch.rand(2, 1, 128, 32)).shape == (2, model.num_features)


def changed(kind: str, **changes) -> dict:
    return json.loads(json.dumps(recipe(kind))) | changes


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (changed("two-towers", backbone={"image": {"name": "test_resnet"}}), ("backbone.text.name",)),
        (changed("two-towers", backbone={"name": "test_resnet"}), ("backbone.image.name", "backbone.text.name")),
        (
            changed("two-towers", backbone={"image": {"name": "bert"}, "text": {"name": "bert"}}),
            ("image", "bert", "reads"),
        ),
        (changed("two-towers", data={"name": "fashion-mnist"}), ("text", "fashion-mnist")),
        (changed("hidden-words", backbone={"name": "test_resnet"}), ("text", "test_resnet")),
        (changed("hidden-bands", data={"name": "tower-bands", "size": [100, 30]}), ("patch",)),
    ],
    ids=["no network", "one network", "wrong kind", "no field", "an image network for text", "patches"],
)
def test_what_does_not_fit_is_refused_in_one_sentence(values, words, tmp_path):
    said = sentence(lambda: zoo.pretrain(values, out=tmp_path / "run", progress=False))
    assert all(word in said for word in words), said
    assert not (tmp_path / "run" / "checkpoint").exists()

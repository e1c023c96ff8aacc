"""The first command that a newcomer runs, on the road without Fashion-MNIST."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import killing
import pytest
import run_example
import timm
from run_example import weights

import zoo
from zoo import cli
from zoo.card import read_card
from zoo.checkpoint.write import update_card
from zoo.errors import ZooError
from zoo.evaluate import finetune, protocols, study
from zoo.hub import hub

STEPS = 9


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """No network and no set from it; and one draw of what else is drawn three or five times, with a tenth of the steps
    of fine-tuning.
    """
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for where, name in ((protocols, "DRAWS"), (protocols, "FINETUNE_DRAWS"), (study, "NETWORKS")):
        monkeypatch.setattr(where, name, 1)
    tuning = finetune.FineTuning
    monkeypatch.setattr(protocols, "FineTuning", lambda **given: tuning(steps=30, **given))
    return tmp_path


def offline(name, *given):
    raise ZooError(f"{name} can't be got: there is no network")


def test_on_digits(place, monkeypatch, capsys):
    monkeypatch.setattr("zoo.data.datasets.get_data", offline)
    assert cli.main(["quickstart", "--steps", str(STEPS), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (
        out.count("\n") == 1
        and found["data"] == "digits"
        and "fashion-mnist can't be got" in err
        and "digits instead" in err
    )

    # what is promised is there, and is what it says
    folder = Path("quickstart")
    card = read_card(folder / "run/checkpoint")
    assert (
        found["checkpoint"] == str(folder / "run/checkpoint")
        and card["steps"] == STEPS
        and card["license"] == "Apache-2.0"
    )
    assert card["data"]["name"] == "digits" and card["data"]["size"] == 28 and card["task"]["flip"] == 0, (
        "digits have a handedness"
    )
    assert {"recipe.yaml", "metrics.csv", "last.ckpt", "checkpoint"} <= {
        path.name for path in (folder / "run").iterdir()
    }
    (entry,) = hub.list_checkpoints(found["hub"])
    assert (
        entry["name"] == "quickstart"
        and found["hub"] == str(folder / "hub")
        and hub.verify(found["hub"]) == hub.verify() == []
    )
    (pulled,) = (path for path in (place / "home/hub").iterdir() if path.is_dir())
    assert (
        sum(p.numel() for p in timm.create_model(f"local-dir:{pulled}", pretrained=True).parameters())
        == entry["parameters"]
    )
    page = Path(found["page"]).read_text()
    assert (
        found["page"] == str(folder / "report.html") and "data:image/png;base64," in page and "random weights" in page
    )

    # each protocol beside random weights and raw pixels, at both amounts of labels, in the result and in what is
    # printed
    rows = {(row["protocol"], row["labels"], row["features"]): row["value"] for row in found["rows"]}
    frozen = {
        (protocol, amount, features)
        for protocol in ("knn", "linear")
        for amount in (1.0, 0.01)
        for features in ("backbone", "random weights", "pixels")
    }
    assert set(rows) == frozen | {("finetune", 0.01, "backbone"), ("finetune", 0.01, "random weights")}
    assert rows["linear", 1.0, "backbone"] > 50 and rows["linear", 1.0, "pixels"] > 85
    for features in ("backbone", "random weights", "pixels"):
        (line,) = [line for line in err.splitlines() if re.search(rf"^\W*{features}\s", line)]
        assert f"{rows['knn', 1.0, features]:.1f}" in line and f"{rows['linear', 0.01, features]:.1f}" in line
        assert (" - " in line) == (features == "pixels")
    assert "-: these features have no network to fine-tune" in err
    assert re.search(r"knn \d[0-9.]*, spread [0-9.]+, effective_rank [0-9.]+", err), "what was seen on the way"
    command = re.search(r"go on with:  zoo (.*)", err)[1].split()
    assert cli.main([*command, "--mode", "knn"]) == 0

    # and it is nobody's to overwrite
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert cli.main(["quickstart"]) == 2
    assert capsys.readouterr().err == (
        "zoo: quickstart holds a quickstart already; add --resume to go on with one that was interrupted, "
        "remove it, or add --out ANOTHER-FOLDER\n"
    )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_on_fashion_mnist_where_it_can_be_had(place, monkeypatch, capsys):
    """The recipe as it is, on what it names; training and measuring are made short."""
    asked = {}
    small = run_example.train(place / "small")
    update_card(small / "checkpoint", name="small")

    def pretrain(recipe, out, progress, resume, **changes):
        asked.update(recipe=recipe, out=out, changes=changes)
        Path(out).parent.mkdir(parents=True)
        return small.rename(out)

    def measure_study(study, pairs):
        asked["measured"] = study.name, pairs
        return []

    monkeypatch.setattr("zoo.data.datasets.get_data", lambda name: asked.update(got=name))
    monkeypatch.setattr("zoo.pretrain.pretrain", pretrain)
    monkeypatch.setattr("zoo.evaluate.table.measure_study", measure_study)
    result = zoo.quickstart(place / "out", progress=False)
    assert asked["got"] == result["data"] == "fashion-mnist" and asked["out"] == place / "out/run"
    assert asked["recipe"] == "simclr-test-resnet-fashion-mnist" and asked["changes"] == {}
    assert asked["measured"] == (
        "fashion-mnist",
        [("knn", 1.0), ("knn", 0.01), ("linear", 1.0), ("linear", 0.01), ("finetune", 0.01)],
    )
    assert "digits" not in capsys.readouterr().err and Path(result["page"]).is_file()


def test_one_that_was_interrupted_goes_on(place, monkeypatch):
    """In its training, and behind it: with the same weights as without, and without training again."""
    monkeypatch.setattr("zoo.data.datasets.get_data", offline)
    whole = zoo.quickstart("whole", steps=STEPS, progress=False)

    def to_be_killed():
        killing.at(zoo.tasks.base.PretextTask, "training_step", 4)
        zoo.quickstart("cut", steps=STEPS, progress=False)

    assert killing.forked(to_be_killed) == -signal.SIGKILL and Path("cut/run/recipe.yaml").is_file()
    with pytest.raises(ZooError, match="cut holds a quickstart already; add --resume to go on"):
        zoo.quickstart("cut", steps=STEPS, progress=False)
    with monkeypatch.context() as changed:
        changed.setattr("zoo.evaluate.table.measure_study", lambda *given, **also: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            zoo.quickstart("cut", steps=STEPS, progress=False, resume=True)
    monkeypatch.setattr("zoo.pretrain.pretrain", lambda *given, **also: pytest.fail("it is trained already"))
    again = zoo.quickstart("cut", steps=STEPS, progress=False, resume=True)
    assert (
        weights(Path("cut/run")) == weights(Path("whole/run"))
        and again["rows"] == whole["rows"]
        and Path(again["page"]).is_file()
    )

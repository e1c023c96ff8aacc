"""A recipe whose run takes a second, and what the tests of runs, loggers and the command line share."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import yaml

import zoo
from zoo import cli
from zoo.card import read_card
from zoo.checkpoint.write import update_card

RECIPE = {
    "data": {"name": "digits", "batch_size": 128, "size": 16},
    "backbone": {"name": "test_resnet"},
    "task": {"name": "autoencoder", "code": 8, "width": 8},
    "optim": {"lr": 2e-3},
    "trainer": {"max_steps": 12, "validate_every": 0},
}


def recipe(**changes) -> dict:
    """RECIPE with groups changed key by key, as in recipe(trainer={"max_steps": 4})."""
    out = copy.deepcopy(RECIPE)
    for group, value in changes.items():
        out[group] = out.get(group, {}) | value if isinstance(value, dict) else value
    return out


def train(out: Path, **changes) -> Path:
    return zoo.pretrain(recipe(**changes), out=out, progress=False)


def weights(run: Path) -> dict[str, str]:
    """The sha256 of a run's two files of weights."""
    return {
        file["path"]: file["sha256"]
        for file in read_card(run / "checkpoint")["files"]
        if file["path"].endswith(".safetensors")
    }


def recipe_file(name: str = "small.yaml", **changes) -> str:
    Path(name).write_text(yaml.safe_dump(recipe(**changes)))
    return name


# ---- for the command line ------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """An empty folder to be in, caches of one's own, and no network."""
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    monkeypatch.delenv("ZOO_HUB", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@functools.cache
def _published(place: Path) -> tuple[Path, Path]:
    run = train(place / "run")
    zoo.evaluate(run, protocols=("knn",), labels=(5,), save=True, baselines=False)
    update_card(run / "checkpoint", license="Apache-2.0", name="small")
    zoo.push(run, place / "hub")
    return run, place / "hub"


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run that was really trained, with a licence and a line of results; once, whichever files of tests ask for
    it.
    """
    return _published(tmp_path_factory.getbasetemp() / "published")[0]


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Path:
    """A hub that holds it, under the name small."""
    return _published(tmp_path_factory.getbasetemp() / "published")[1]


@pytest.fixture
def zoo_says(capsys, trained, hub):
    """Runs a command line, with {run} and {hub} filled in, and gives (exit code, standard output, standard error)."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(word).format(run=trained, hub=hub) for word in words])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def refused(zoo_says):
    """The one sentence in which a command line is refused."""

    def call(*words: str) -> str:
        code, out, err = zoo_says(*words)
        assert (code, out) == (2, "") and err.startswith("zoo: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert "Traceback" not in err and "<class" not in err
        return err.removeprefix("zoo: ").rstrip()

    return call

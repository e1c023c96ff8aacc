"""Loggers: what each leaves behind, and that none can end a run."""

from __future__ import annotations

import csv
import os
import sys
import time
import types
import warnings
from pathlib import Path

import pytest
import run_example
import torch
from lightning.pytorch.loggers import Logger

import zoo
from zoo.errors import ZooError
from zoo.machine import logs
from zoo.machine.logs import Careful, create_logger, log_checkpoint, log_pictures

PICTURES = {"guess": torch.linspace(0, 1, 3 * 4 * 6).view(3, 4, 6)}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """wandb's own folders and keys are those of nobody."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def rows(folder: Path) -> list[dict]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


# ---- names and packages --------------------------------------------------------------------------


def test_none_logs_nothing(tmp_path):
    assert create_logger("none", tmp_path / "run", {}) is False and not (tmp_path / "run").exists()
    log_pictures(False, PICTURES, 1)
    log_checkpoint(False, tmp_path, "name")


def test_an_unknown_name(tmp_path):
    with pytest.raises(ZooError, match="^'tensorbord' is not a logger; did you mean tensorboard"):
        create_logger("tensorbord", tmp_path, {})
    with pytest.raises(ZooError, match="^'wandbb' is not a logger; did you mean wandb"):
        zoo.pretrain(run_example.RECIPE, out=tmp_path / "run", logger="wandbb", progress=False)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_not_installed(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ZooError,
        match=f'^the {name} logger needs a package that is not installed: pip install "pretext-zoo\\[{name}\\]"$',
    ):
        create_logger(name, tmp_path, {})


# ---- csv -----------------------------------------------------------------------------------------


def test_csv(tmp_path):
    run = run_example.train(tmp_path / "run", trainer={"max_steps": 20, "validate_every": 1})
    found = rows(run)
    assert [int(row["step"]) for row in found if "loss" in row] == list(range(20)) and not (
        run / "hparams.yaml"
    ).exists()
    validated = [row for row in found if "val_loss" in row]
    assert [int(row["step"]) for row in validated] == [8, 17] and all(
        {"knn", "spread", "effective_rank"} <= row.keys() for row in validated
    )
    losses = [float(row["loss"]) for row in found if "loss" in row]
    assert losses[-1] < losses[0]


def test_csv_of_a_longer_run_has_a_point_every_ten_steps(tmp_path):
    run = run_example.train(tmp_path / "run", data={"batch_size": 16, "size": 8}, trainer={"max_steps": 200})
    assert [int(row["step"]) for row in rows(run)] == list(range(9, 200, 10))


def test_csv_of_a_resumed_run_goes_on(tmp_path):
    """And what was there is on the disk again before the first new row: the process may die again."""
    first = create_logger("csv", tmp_path, {})
    first.log_metrics({"loss": 3.0}, 0)
    first.log_metrics({"val_loss": 2.5}, 0)
    first.save()
    again = create_logger("csv", tmp_path, {})
    assert rows(tmp_path) == [{"loss": "3.0", "step": "0"}, {"val_loss": "2.5", "step": "0"}]
    again.log_metrics({"loss": 1.0, "new": 7}, 1)
    again.finalize("success")
    assert rows(tmp_path) == [
        {"loss": "3.0", "step": "0"},
        {"val_loss": "2.5", "step": "0"},
        {"loss": "1.0", "new": "7", "step": "1"},
    ]


def test_csv_that_is_damaged_costs_no_run(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"step,loss\n1,2,3,4\n\xff\xfe")
    with pytest.warns(UserWarning, match="the csv logger failed and is left out from here on"):
        assert create_logger("csv", tmp_path, {}) is False


# ---- tensorboard ---------------------------------------------------------------------------------


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = zoo.pretrain(run_example.RECIPE, out=tmp_path / "run", logger="tensorboard", progress=False)
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    assert {"loss", "epoch"} <= set(found.Tags()["scalars"]) and [
        event.step for event in found.Scalars("loss")
    ] == list(range(12))
    text = found.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "name: autoencoder" in text and "max_steps: 12" in text
    (picture,) = found.Images("pictures/reconstruction")
    assert picture.step == 12 and picture.width > 16 and not (run / "metrics.csv").exists()


# ---- wandb ---------------------------------------------------------------------------------------


class Run:
    """What Lightning and we ask of a run of wandb."""

    def __init__(self, **given):
        self.given, self.logged, self.artifacts, self.axes, self.ended = given, [], [], {}, []
        self.id = "id"

    def log(self, values):
        self.logged.append(values)

    def log_artifact(self, artifact):
        self.artifacts.append(artifact)

    def define_metric(self, name, step_metric=None, **also):
        self.axes[name] = step_metric

    def finish(self, exit_code=None):
        self.ended.append(exit_code)


class Artifact:
    def __init__(self, name, type):
        self.name, self.type, self.folders = name, type, []

    def add_dir(self, folder):
        self.folders.append(Path(folder))


@pytest.fixture
def wandb(monkeypatch) -> types.SimpleNamespace:
    """A wandb that asks no service; `runs` are those that were begun."""
    real = pytest.importorskip("wandb")
    runs: list[Run] = []
    monkeypatch.setattr(real, "init", lambda **given: runs.append(Run(**given)) or runs[-1])
    monkeypatch.setattr(real, "Artifact", Artifact)
    monkeypatch.setattr(real, "Image", lambda array: array)
    return types.SimpleNamespace(runs=runs)


def test_wandb(wandb, tmp_path):
    run = zoo.pretrain(run_example.RECIPE, out=tmp_path / "run", logger="wandb", progress=False)
    (begun,) = wandb.runs
    assert (
        begun.given["mode"] == "offline"
        and begun.given["dir"] == str(run)
        and begun.given["name"] == "run"
        and begun.given["project"] == "pretext-zoo"
    )
    assert (
        begun.given["config"]["task"]["name"] == "autoencoder" and begun.given["config"]["trainer"]["max_steps"] == 12
    )
    assert begun.axes["*"] == "trainer/global_step"
    steps = [values["trainer/global_step"] for values in begun.logged]
    assert steps == [*range(12), 12] and all("loss" in values for values in begun.logged[:-1])
    picture = begun.logged[-1]["pictures/reconstruction"]
    assert picture.shape[2] == 3 and picture.dtype.name == "uint8" and picture.max() > 100
    (artifact,) = begun.artifacts
    assert (artifact.type, artifact.folders) == ("model", [run / "checkpoint"]) and begun.ended == [0]


def test_wandb_of_a_run_that_failed_is_closed(wandb, tmp_path):
    """Else the next run of the process would go on in it."""
    with pytest.raises(ZooError, match="the loss of autoencoder is"):
        zoo.pretrain(
            run_example.recipe(optim={"lr": 1e30, "warmup": 0.0}, trainer={"max_steps": 50}),
            out=tmp_path / "run",
            logger="wandb",
            progress=False,
        )
    assert wandb.runs[0].ended == [1] and not wandb.runs[0].artifacts


@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        ({}, None, "offline"),
        ({}, "machine example.org login a password b", "offline"),
        ({}, "machine api.wandb.ai login a password b", "online"),
        ({}, "no netrc at all", "offline"),
        ({"WANDB_API_KEY": "k"}, None, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, None, "offline"),
        ({"WANDB_MODE": "disabled"}, None, "disabled"),
        ({"WANDB_PROJECT": "mine"}, None, "offline"),
    ],
)
def test_where_wandb_goes(environment, netrc, mode, wandb, tmp_path, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
    create_logger("wandb", tmp_path / "run", {})
    assert wandb.runs[0].given["mode"] == mode and wandb.runs[0].given["project"] == environment.get(
        "WANDB_PROJECT", "pretext-zoo"
    )


def test_wandb_really_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    (tmp_path / "elsewhere").mkdir()
    for folder in (
        tmp_path / "elsewhere",
        tmp_path,
    ):  # wandb's own process is begun in one, and is there still when a run begins in another
        monkeypatch.chdir(folder)
        logger = create_logger("wandb", "run", run_example.RECIPE)
        logger.log_metrics({"loss": 0.5}, 3)
        if folder != tmp_path:
            logger.finalize("failed")
    log_pictures(logger, PICTURES, 3)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "zoo.json").write_text("{}")
    log_checkpoint(logger, tmp_path / "checkpoint", "small")
    assert not logger.broken and wandb.run is None
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (kept,) = folder.glob("run-*.wandb")
    patience = time.monotonic() + 60  # wandb's own process writes it, and may be slow on a busy machine
    while b"loss" not in (data := kept.read_bytes()) and time.monotonic() < patience:
        time.sleep(0.1)
    assert b"loss" in data and b"autoencoder" in data and list(folder.rglob("pictures/guess_*.png"))


# ---- loggers that fail ---------------------------------------------------------------------------


class Broken(Logger):
    """Raises in the call that is asked for, and notes all calls."""

    name = version = root_dir = None
    experiment = None

    def __init__(self, where: str):
        super().__init__()
        self.where, self.calls = where, []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.where:
            raise ConnectionError("the service is down")

    def log_hyperparams(self, *given):
        raise AssertionError("the recipe was logged at the start")

    def log_metrics(self, metrics, step=None):
        self._call("log_metrics")

    def save(self):
        self._call("save")

    def finalize(self, status):
        self._call("finalize")


@pytest.mark.parametrize("where", ["log_metrics", "save", "finalize"])
def test_a_logger_that_fails_is_warned_of_once(where, tmp_path, monkeypatch):
    inner = Broken(where)
    with warnings.catch_warnings(record=True) as caught, monkeypatch.context() as patched:
        warnings.simplefilter("always")
        patched.setattr("zoo.train.run.create_logger", lambda *given: Careful(inner, "broken"))
        run = run_example.train(tmp_path / "run")
    (warning,) = [str(warning.message) for warning in caught if "logger" in str(warning.message)]
    assert warning == "the broken logger failed and is left out from here on: ConnectionError: the service is down"
    assert (run / "checkpoint" / "zoo.json").is_file()
    assert inner.calls.index(where) == len(inner.calls) - 1, "it is asked for nothing more"
    if where == "log_metrics":
        assert run_example.weights(run) == run_example.weights(run_example.train(tmp_path / "undisturbed"))


def test_a_service_that_is_down_from_the_beginning(wandb, tmp_path, monkeypatch):
    def fail(**given):
        raise RuntimeError("no network")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    with pytest.warns(
        UserWarning, match="the wandb logger failed and is left out from here on: RuntimeError: no network"
    ):
        run = zoo.pretrain(run_example.RECIPE, out=tmp_path / "run", logger="wandb", progress=False)
    assert (run / "checkpoint" / "zoo.json").is_file()


def test_pictures_and_artifacts_that_fail(tmp_path, monkeypatch):
    logger = Careful(Broken("nothing"), "wandb")
    monkeypatch.setitem(logs._PICTURES, "wandb", lambda *given: 1 / 0)
    with pytest.warns(UserWarning, match="the wandb logger failed .* ZeroDivisionError"):
        log_pictures(logger, PICTURES, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_pictures(logger, PICTURES, 1)
        log_checkpoint(logger, tmp_path, "name")
    assert logger.inner.calls == [] and os.listdir(tmp_path) == []

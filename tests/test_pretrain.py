"""From a recipe to a trained checkpoint: what is refused, what is written, and that a run can die and go on."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import platform
import random
import signal
import types
import warnings
from importlib import metadata
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from run_example import RECIPE, recipe, train, weights

import zoo
from zoo import registry
from zoo.card import read_card
from zoo.errors import ZooError
from zoo.evaluate.check import check_metric
from zoo.machine.provenance import commit
from zoo.machine.resumable import newest_good
from zoo.registry import find_task
from zoo.tasks.base import PretextTask
from zoo.tasks.load import load_task
from zoo.tasks.output import TaskOutput
from zoo.train.settings import Training
from zoo.views import to_float


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def pictures(folder: Path, count: int) -> Path:
    """An unlabelled folder of random pictures."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(folder / f"{number:03}.png")
    return folder


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "doesn't say how long to train; set trainer.max_steps or trainer.max_epochs"),
        ({"max_steps": 0}, "trainer.max_steps is 0; give at least 1, or -1 for no limit"),
        ({"max_steps": 0, "max_epochs": 1}, "trainer.max_steps is 0"),
        ({"max_steps": 1, "max_epochs": -5}, "trainer.max_epochs is -5"),
        ({"max_epochs": -1}, "doesn't say how long"),
        ({"max_steps": 1, "accumulate": 0}, "trainer.accumulate is 0; the least is 1"),
        ({"max_steps": 1, "clip": -0.5}, "trainer.clip is -0.5; the least is 0"),
        ({"max_steps": 1, "validate_every": -1}, "trainer.validate_every is -1"),
        ({"max_epochs": 1, "save_every": 0}, "trainer.save_every is 0; the least is 1"),
    ],
)
def test_a_training_that_is_none(given, sentence):
    with pytest.raises(ZooError, match=sentence):
        Training(**given)


def test_a_training_is_a_fact():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Training(max_steps=1).max_steps = 2


@pytest.mark.parametrize(
    "changes",
    [
        {"task": {"name": "colorize", "code": None}, "data": {"name": "fashion-mnist"}},
        {"backbone": {"name": "nothing"}},
        {"optim": {"lr": "high"}},
        {"backbone": {"patch_size": 4}},
        {"task": {"name": "mae"}},
        {"trainer": {"save_every": 0}},
        {"data": {"size": -1}},
        {"data": {"batch_size": 0}},
    ],
    ids=str,
)
def test_mistakes_are_found_before_anything_is_got_or_written(changes, tmp_path, monkeypatch):
    wrong = recipe(data={"name": "fashion-mnist"}) | {"task": {"name": "simclr"}}
    for group, value in changes.items():
        wrong[group] = {key: part for key, part in (wrong[group] | value).items() if part is not None}
    monkeypatch.setattr("zoo.data.module.load_data", lambda *given, **also: pytest.fail("the data were asked for"))
    with pytest.raises(ZooError) as error:
        zoo.pretrain(wrong, out=tmp_path / "run", progress=False)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_numbers_by_chance_are_refused(tmp_path, with_bf16):
    """A strided convolution on a map of one pixel, in bf16: torch leaves its gradient unwritten on some CPUs. Where it
    isn't torch's, it isn't refused.
    """
    wrong = recipe(
        backbone={"name": "test_efficientnet"}, data={"size": 16}, trainer={"precision": "bf16", "accelerator": "cpu"}
    )
    said = (
        "test_efficientnet strides over a feature map of a single pixel where pictures have 16, .*; set "
        "trainer.precision to 32"
    )
    with pytest.raises(ZooError, match=said):
        zoo.pretrain(wrong, out=tmp_path / "run", progress=False)
    for changes in ({"data": {"size": 20}}, {"backbone": {"name": "test_resnet"}}, {"trainer": {"precision": "32"}}):
        allowed = {group: value | changes.get(group, {}) for group, value in wrong.items()}
        zoo.pretrain(allowed, out=tmp_path / next(iter(changes)), progress=False, **{"trainer.max_steps": 1})


def test_one_picture_is_too_few_for_batch_norm(tmp_path):
    with pytest.raises(
        ZooError,
        match="batch normalisation has no spread to go by in a step of data.batch_size 1; give it a larger one",
    ):
        zoo.pretrain(recipe(data={"batch_size": 1}), out=tmp_path / "run", progress=False)


def test_a_recipe_without_mistakes_does_ask_for_its_data(tmp_path, monkeypatch):
    """What the test above relies on."""
    monkeypatch.setattr("zoo.data.module.load_data", lambda *given, **also: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        zoo.pretrain(recipe(data={"name": "fashion-mnist"}), out=tmp_path / "run", progress=False)


# ---- what is written -----------------------------------------------------------------------------


def test_the_card_is_true(tmp_path):
    run = train(tmp_path / "run", data={"batch_size": 100}, trainer={"max_epochs": 2, "max_steps": -1, "accumulate": 5})
    card, saved = read_card(run / "checkpoint"), yaml.safe_load((run / "recipe.yaml").read_text())
    assert card["recipe"] == saved and card["seed"] == 0 and card["name"] == "autoencoder-test_resnet-digits"
    # 12 batches an epoch in steps of 5, 5 and 2
    assert card["steps"] == 6 and card["samples_seen"] == 2 * 12 * 100
    assert card["parameters"] == sum(p.numel() for p in timm.create_model("test_resnet", num_classes=0).parameters())
    assert (
        card["task"] == saved["task"]
        and card["backbone"] == saved["backbone"]
        and card["summary"].startswith("Squeeze a picture")
    )
    assert (
        card["data"]["fingerprint"] == zoo.load_data("digits", 16).fingerprint
        and card["data"]["size"] == 16
        and card["data"]["channels"] == 1
    )
    assert (
        card["data"]["license"] == "CC-BY-4.0"
        and card["license"] is None
        and card["parent"] is None
        and card["metrics"] == []
    )
    assert card["minutes"] < 5 and 100 < card["peak_memory_mb"] < 100_000 and card["commit"] == commit()
    assert card["packages"] == {"python": platform.python_version(), "pretext-zoo": zoo.__version__} | {
        name: metadata.version(name)
        for name in ("torch", "torchvision", "timm", "lightning", "safetensors", "numpy", "scikit-learn", "pillow")
    }
    machine = card["machine"]
    assert (
        machine["threads"] == torch.get_num_threads()
        and machine["device"] == "cpu"
        and machine["cores"] >= 1
        and machine["cpu"]
    )
    assert card["check"] == {
        "protocol": "knn",
        "data": "digits",
        "images": 2000,
        "tolerance": 0.5,
        "value": check_metric(load_task(run / "checkpoint"), zoo.create_data("digits", size=16)),
    }
    assert {"model.safetensors", "heads.safetensors", "config.json", "reconstruction.png"} == {
        file["path"] for file in card["files"]
    }


def test_a_saved_recipe_runs_again_to_the_same_weights(tmp_path):
    first = train(tmp_path / "first", task={"code": 4}, trainer={"max_steps": 6})
    again = zoo.pretrain(first / "recipe.yaml", out=tmp_path / "again", progress=False)
    assert (again / "recipe.yaml").read_text() == (first / "recipe.yaml").read_text() and weights(again) == weights(
        first
    )
    other = zoo.pretrain(first / "recipe.yaml", out=tmp_path / "other", progress=False, seed=1)
    assert weights(other) != weights(first)


def test_neither_logger_nor_looking_nor_saving_changes_the_weights(tmp_path):
    plain = zoo.pretrain(recipe(), out=tmp_path / "plain", progress=False, logger="none")
    for name, trainer in {
        "watched": {"validate_every": 1, "save_every": 1},
        "by default": {"validate_every": None},
    }.items():
        assert weights(zoo.pretrain(recipe(trainer=trainer), out=tmp_path / name, progress=True)) == weights(plain)


def test_overrides_nested_and_dotted(tmp_path):
    changes = [
        {"task": {"code": 4}, "optim": {"lr": 1e-3}, "seed": 3},
        {"task.code": 4, "optim.lr": 1e-3, "seed": 3},
        {"task": {"code": 4}, "optim.lr": "1e-3", "seed": "3"},
    ]
    runs = [
        zoo.pretrain(recipe(trainer={"max_steps": 2}), out=tmp_path / str(number), progress=False, **given)
        for number, given in enumerate(changes)
    ]
    saved = [yaml.safe_load((run / "recipe.yaml").read_text()) for run in runs]
    assert (
        saved[0] == saved[1] == saved[2]
        and saved[0]["task"]["code"] == 4
        and saved[0]["optim"]["lr"] == 1e-3
        and saved[0]["seed"] == 3
    )
    assert saved[0]["task"]["width"] == 8, "what isn't mentioned stays"
    with pytest.raises(ZooError, match="task.cod is not a key of this recipe; did you mean task.code"):
        zoo.pretrain(recipe(), out=tmp_path / "wrong", task={"cod": 4})


def test_the_name_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.train.run._Run.train", lambda self, *given: (self.name, self.folder))
    assert zoo.pretrain(recipe()) == ("autoencoder-test_resnet-digits", Path("runs/autoencoder-test_resnet-digits-s0"))
    Path("My Recipe (2).yaml").write_text(yaml.safe_dump(recipe()))
    assert zoo.pretrain("My Recipe (2).yaml", seed=7) == ("my-recipe-2", Path("runs/my-recipe-2-s7"))
    assert zoo.pretrain("My Recipe (2).yaml", smoke=True) == ("my-recipe-2", Path("runs/my-recipe-2-s0-smoke"))
    assert zoo.pretrain("simclr-test-resnet-fashion-mnist", smoke=True, out="here") == (
        "simclr-test-resnet-fashion-mnist",
        Path("here"),
    )
    for odd in (
        "_.yaml",
        "__a_.yaml",
        "\u65e5\u672c.yaml",
        f"{'long' * 50}.yaml",
    ):  # nothing that a card couldn't be named after
        Path(odd).write_text(yaml.safe_dump(recipe()))
        name, _ = zoo.pretrain(odd)
        assert zoo.card.SLUG.fullmatch(name)


def test_smoke_needs_no_data_and_takes_two_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.train.run.create_data", lambda *given, **also: pytest.fail("the data were asked for"))
    run = zoo.pretrain(
        recipe(data={"name": "cifar10"}, trainer={"max_steps": 10**6, "max_epochs": 50}),
        out=tmp_path / "run",
        smoke=True,
        progress=False,
    )
    card = read_card(run / "checkpoint")
    assert (
        card["steps"] == 2
        and card["samples_seen"] == 16
        and card["check"] is None
        and card["data"]["fingerprint"].startswith("generated")
    )
    zoo.load(run)


def test_pictures_without_labels(tmp_path):
    """There is nothing to check them by; everything else is there, the health of the features in the log included."""
    folder = pictures(tmp_path / "pictures", 40)
    run = train(
        tmp_path / "run",
        data={"name": f"folder:{folder}", "batch_size": 8},
        trainer={"max_epochs": 2, "max_steps": -1, "validate_every": 1},
    )
    card = read_card(run / "checkpoint")
    assert card["check"] is None and card["data"]["name"] == f"folder:{folder}" and card["data"]["license"] == "unknown"
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert rows and {"val_loss", "spread", "effective_rank"} <= set(header.split(",")) and "knn" not in header


def test_what_is_drawn_is_of_all_classes(tmp_path, monkeypatch):
    """In a folder the pictures of a class lie together, and the first would be of one alone."""
    for name in "abc":
        (tmp_path / "pictures").mkdir(exist_ok=True)
        pictures(tmp_path / "pictures" / name, 40)
    drawn = []
    monkeypatch.setattr(find_task("autoencoder"), "figure", lambda task, batch: drawn.append(batch["label"]) or {})
    train(tmp_path / "run", data={"name": f"folder:{tmp_path / 'pictures'}", "batch_size": 8}, trainer={"max_steps": 1})
    assert set(drawn[0][:8].tolist()) == {0, 1, 2}


def test_two_pictures_are_enough(tmp_path):
    """And a split that is empty then: there is no validation, and the picture is drawn of training pictures."""
    folder = pictures(tmp_path / "pictures", 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*collapsed")
        run = train(
            tmp_path / "run",
            data={"name": f"folder:{folder}", "batch_size": 1, "size": 64},
            trainer={"max_steps": 2, "validate_every": 1},
        )
    assert (run / "checkpoint" / "reconstruction.png").stat().st_size > 100


# ---- dying and going on --------------------------------------------------------------------------


@pytest.fixture
def killed_at(monkeypatch):
    """Runs a recipe, which dies while it works on the given batch, counted from 0."""

    def run(batch: int, *given, **also) -> None:
        step, done = PretextTask.training_step, iter(range(10**6))

        def dying(self, *arguments):
            if next(done) == batch:
                raise MemoryError("killed")
            return step(self, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(PretextTask, "training_step", dying)
            with pytest.raises(MemoryError):
                zoo.pretrain(*given, **also)

    return run


RUNS = {
    "within an epoch": (recipe(trainer={"max_steps": 14, "save_every": 4}), 11, 8),
    "before the first save": (recipe(trainer={"max_steps": 8, "save_every": 6}), 3, None),
    "accumulating, with dropout and views": (
        recipe(
            backbone={"drop_path_rate": 0.3},
            data={"batch_size": 64},
            trainer={"max_steps": 12, "accumulate": 2, "save_every": 5, "clip": 1.0},
        )
        | {"task": {"name": "simclr", "hidden": 32, "outputs": 16}},
        15,
        5,
    ),
    "in bf16, after a validation": (
        recipe(
            data={"size": 20},
            trainer={"max_steps": 12, "save_every": 5, "validate_every": 1, "precision": "bf16", "clip": 1.0},
        ),
        11,
        10,
    ),
}


@pytest.mark.parametrize("what", RUNS)
def test_a_resumed_run_is_the_undisturbed_one(what, tmp_path, killed_at, with_bf16):
    """To the last bit of its weights; and its log has every step."""
    values, batch, saved = RUNS[what]
    killed_at(batch, values, out=tmp_path / "run", progress=False)
    state = newest_good(tmp_path / "run")
    assert (state and torch.load(state, weights_only=True)["global_step"]) == saved and not (
        tmp_path / "run/checkpoint"
    ).exists()
    run = zoo.pretrain(values, out=tmp_path / "run", resume=True, progress=False)
    undisturbed = zoo.pretrain(values, out=tmp_path / "undisturbed", progress=False)
    assert weights(run) == weights(undisturbed)
    cards = [read_card(folder / "checkpoint") for folder in (run, undisturbed)]
    assert all(cards[0][key] == cards[1][key] for key in ("steps", "samples_seen", "check", "recipe", "data"))
    logged = {int(row["step"]) for row in csv.DictReader((run / "metrics.csv").read_text().splitlines()) if row["loss"]}
    assert logged == set(range(values["trainer"]["max_steps"]))


def test_a_run_goes_on_with_the_defaults_that_it_was_begun_with(tmp_path, killed_at):
    """Those of an older version, which its recipe.yaml has written out."""
    values = recipe(trainer={"max_steps": 12, "save_every": 4})
    del values["trainer"]["validate_every"]
    killed_at(6, values | {"trainer": values["trainer"] | {"validate_every": 1}}, out=tmp_path / "run", progress=False)
    run = zoo.pretrain(values, out=tmp_path / "run", resume=True, progress=False)
    assert read_card(run / "checkpoint")["recipe"]["trainer"]["validate_every"] == 1
    with pytest.raises(ZooError, match="was begun with trainer.validate_every 1, and the recipe now says 2"):
        zoo.pretrain(values, out=tmp_path / "run", resume=True, **{"trainer.validate_every": "2"})


def test_a_finished_run_can_be_resumed(tmp_path):
    """Nothing is trained; what is missing is written again."""
    run = train(tmp_path / "run", trainer={"max_steps": 4})
    before, log = weights(run), (run / "metrics.csv").read_text()
    (run / "checkpoint" / "model.safetensors").unlink()
    zoo.pretrain(recipe(trainer={"max_steps": 4}), out=run, resume=True, progress=True)
    card = read_card(run / "checkpoint")
    assert (
        weights(run) == before
        and card["steps"] == 4
        and card["samples_seen"] == 4 * 128
        and (run / "metrics.csv").read_text() == log
    )


def test_minutes_are_those_of_all_parts(tmp_path, killed_at, monkeypatch):
    """With a clock that goes on by ten minutes whenever it is looked at."""
    ticks = iter(range(0, 10**9, 600))
    monkeypatch.setattr("zoo.machine.resumable.time", types.SimpleNamespace(perf_counter=lambda: next(ticks)))
    values = recipe(trainer={"max_steps": 12, "save_every": 4})
    killed_at(10, values, out=tmp_path / "run", progress=False)  # looked at: at the start, and in two saves
    run = zoo.pretrain(values, out=tmp_path / "run", resume=True, progress=False)  # at the start and at the end
    assert read_card(run / "checkpoint")["minutes"] == 20 + 10


def test_a_resumed_run_does_not_save_at_once_what_is_on_the_disk(tmp_path, killed_at, monkeypatch):
    values = recipe(trainer={"max_steps": 12, "save_every": 5})
    killed_at(8, values, out=tmp_path / "run", progress=False)
    save, saved = L.Trainer.save_checkpoint, []
    monkeypatch.setattr(
        L.Trainer, "save_checkpoint", lambda self, path: saved.append(self.global_step) or save(self, path)
    )
    zoo.pretrain(values, out=tmp_path / "run", resume=True, progress=False)
    assert saved == [10, 12]


def test_what_a_run_is_made_of_stays(tmp_path):
    folder = pictures(tmp_path / "pictures", 12)
    values = recipe(data={"name": f"folder:{folder}", "batch_size": 4}, trainer={"max_steps": 1})
    run = zoo.pretrain(values, out=tmp_path / "run", progress=False)
    (folder / "003.png").write_bytes((folder / "004.png").read_bytes())
    with pytest.raises(ZooError, match="the data of .*run have changed since the run began"):
        zoo.pretrain(values, out=run, resume=True, progress=False)
    with pytest.raises(ZooError, match="was begun with task.code 8, and the recipe now says 9; resume it unchanged"):
        zoo.pretrain(values, out=run, resume=True, task={"code": 9})
    with pytest.raises(ZooError, match="holds a run already"):
        zoo.pretrain(values, out=run)
    with pytest.raises(ZooError, match="holds no run to resume"):
        zoo.pretrain(values, out=tmp_path / "other", resume=True)


# ---- the rest of the process ---------------------------------------------------------------------


def _process() -> dict:
    """What of a process a run could change."""
    return {
        "torch's numbers": torch.get_rng_state().tolist(),
        "NumPy's numbers": str(np.random.get_state()),
        "Python's numbers": random.getstate(),
        "levels": {
            name: logging.getLogger(name).level for name in ("", "lightning", "lightning.pytorch", "lightning.fabric")
        },
        "warnings": list(warnings.filters),
        "threads": torch.get_num_threads(),
        "type": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "benchmark": torch.backends.cudnn.benchmark,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
    }


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_leaves_the_process_as_it_was(fails, tmp_path):
    train(
        tmp_path / "first", trainer={"max_steps": 1}
    )  # what libraries set in the environment on their first use is theirs
    logging.getLogger("lightning.pytorch").setLevel(logging.DEBUG)
    before = _process()
    try:
        if fails:
            with pytest.raises(ZooError, match="the loss of autoencoder is"):
                train(tmp_path / "run", optim={"lr": 1e30, "warmup": 0.0}, trainer={"max_steps": 50})
        else:
            train(tmp_path / "run", trainer={"validate_every": 1, "max_steps": 10})
        after = _process()
        assert [name for name in before if before[name] != after[name]] == []
    finally:
        logging.getLogger("lightning.pytorch").setLevel(logging.NOTSET)


@pytest.mark.parametrize("task", [RECIPE["task"], {"name": "byol"}], ids=["autoencoder", "byol, with a teacher"])
def test_a_run_is_quiet(task, tmp_path, capsys, caplog):
    values = recipe(trainer={"validate_every": 1}) | {"task": task}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zoo.pretrain(values, out=tmp_path / "run", progress=False)
    assert capsys.readouterr() == ("", "") and caplog.records == []


# ---- tasks as Lightning modules ------------------------------------------------------------------


class Watched(PretextTask):
    """A task that notes what is asked of it."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.progress, self.began, self.moved = [], 0, []

    def views(self, batch):
        return (to_float(batch["image"]),)

    def forward(self, views):
        self.before = next(self.backbone.parameters()).detach().clone()
        return TaskOutput(self.backbone.pool(views[0]).square().mean())

    def after_step(self, progress):
        self.progress.append(progress)
        self.moved.append(not torch.equal(self.before, next(self.backbone.parameters())))

    def on_train_start(self):
        self.began += 1


def test_a_task_hears_of_true_steps_and_of_the_end(tmp_path, monkeypatch):
    """after_step once per optimizer step, whatever is accumulated, when the weights have moved, lest a teacher lag a
    step behind; and Lightning's own hooks are a task's to use."""
    made = []
    monkeypatch.setattr(Watched, "name", "watched")
    monkeypatch.setitem(registry._here, "watched", Watched)
    monkeypatch.setattr(Watched, "on_fit_end", lambda self: made.append(self), raising=False)
    values = recipe(trainer={"max_steps": 5, "accumulate": 2}) | {"task": {"name": "watched"}}
    zoo.pretrain(values, out=tmp_path / "run", progress=False)
    assert (
        made[0].progress == [(step + 1) / 5 for step in range(5)] and made[0].progress[-1] == 1 and made[0].began == 1
    )
    assert made[0].moved == [True] * 5


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (lambda loss: loss, r"a tensor \(\) of float32"),
        (lambda loss: TaskOutput(loss.expand(3)), r"a tensor \(3,\) of float32"),
        (lambda loss: TaskOutput(loss.item()), "a float"),
        (lambda loss: None, "a NoneType"),
    ],
)
def test_what_is_no_loss_is_said_so(given, what, tmp_path, monkeypatch):
    """As whoever comes from plain Lightning may write it."""
    monkeypatch.setattr(Watched, "name", "watched")
    monkeypatch.setitem(registry._here, "watched", Watched)
    monkeypatch.setattr(Watched, "forward", lambda self, views: given(self.backbone.pool(views[0]).square().mean()))
    with pytest.raises(
        ZooError,
        match=f"forward of the task watched gave {what}; it has to give a TaskOutput whose loss is a tensor with one "
        "number",
    ):
        zoo.pretrain(recipe() | {"task": {"name": "watched"}}, out=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("drawn", "what"),
    [
        ({"grid": torch.zeros(2, 2)}, r"a tensor \(2, 2\) of float32 for 'grid'"),
        ({"grid": [1.0]}, "a list for 'grid'"),
        (torch.zeros(3, 4, 4), r"a tensor \(3, 4, 4\) of float32"),
        ({"grid": torch.zeros(3, 4, 4, dtype=torch.uint8)}, "of uint8 for 'grid'"),
    ],
)
def test_what_is_no_picture_costs_no_training(drawn, what, tmp_path, monkeypatch):
    monkeypatch.setattr(Watched, "name", "watched")
    monkeypatch.setitem(registry._here, "watched", Watched)
    values = recipe() | {"task": {"name": "watched"}}
    with monkeypatch.context() as changed:
        changed.setattr(Watched, "figure", lambda self, batch: drawn)
        with pytest.raises(
            ZooError,
            match=f"figure of the task watched gave .*{what}; it has to give .* by name; mend that, and --resume",
        ):
            zoo.pretrain(values, out=tmp_path / "run", progress=False)
    monkeypatch.setattr(Watched, "training_step", lambda *given: pytest.fail("it is trained already"))
    run = zoo.pretrain(values, out=tmp_path / "run", resume=True, progress=False)
    assert read_card(run / "checkpoint")["steps"] == 12


def test_plain_lightning_from_fit_to_predict(tmp_path):
    """Nothing of zoo.pretrain: Lightning's own checkpoints, resuming, validation and prediction."""

    def parts():
        torch.manual_seed(0)
        data = zoo.create_data("digits", batch_size=128, size=16)
        return zoo.create_task("simclr", zoo.create_backbone("test_resnet", size=16), hidden=32, outputs=16), data

    def trainer(steps: int, name: str) -> L.Trainer:
        return L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path / name,
            callbacks=[L.pytorch.callbacks.ModelCheckpoint(tmp_path / name, every_n_train_steps=4, save_top_k=-1)],
        )

    task, data = parts()
    whole = trainer(12, "whole")
    whole.fit(task, data)
    (value,) = whole.validate(task, data, verbose=False)
    assert np.isfinite(value["val_loss"])
    resumed, data = parts()
    trainer(12, "resumed").fit(
        resumed, data, ckpt_path=next((tmp_path / "whole").glob("*step=8.ckpt")), weights_only=True
    )
    assert all(
        torch.equal(a, b) for a, b in zip(task.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    features = whole.predict(task, torch.utils.data.DataLoader(list(data.batches("test", 100)), batch_size=None))
    assert sum(len(part["backbone"]) for part in features) == 269 and features[0]["backbone"].shape == (
        100,
        task.backbone.num_features,
    )
    assert isinstance(task, find_task("simclr")) and json.dumps(task.arguments)


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (
            lambda: (torch.rand(4, 3, 16, 16), torch.zeros(4)),
            "a batch is a (list|tuple), and the task simclr takes a dict with image, as zoo.create_data gives it",
        ),
        (
            lambda: {"picture": torch.rand(4, 3, 16, 16)},
            "the task simclr needs image, which the batches don't have; they hold picture",
        ),
    ],
)
def test_batches_that_no_task_can_read(batch, sentence, tmp_path):
    """As torchvision's data sets give them."""
    task = zoo.create_task("simclr", zoo.create_backbone("test_resnet", size=16), hidden=32, outputs=16)
    loader = torch.utils.data.DataLoader([0, 1], batch_size=2, collate_fn=lambda rows: batch())
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(ZooError, match=sentence):
        trainer.fit(task, loader)


def test_what_is_no_backbone():
    with pytest.raises(ZooError, match="a task takes a backbone that zoo.create_backbone made, and this is a str"):
        zoo.create_task("simclr", "resnet18")
    with pytest.raises(ZooError, match="and this is a ResNet"):
        zoo.create_task("simclr", timm.create_model("test_resnet"))

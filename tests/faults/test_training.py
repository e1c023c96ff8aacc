"""R12, R13, R19, R20: numbers that aren't finite, loggers that fail, devices that aren't there."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from killing import (
    assert_finite,
    assert_same,
    curves,
    generated,
    go_on,
    pretrain,
    recipe,
    state,
    undisturbed,
)  # noqa: F401

import zoo
from zoo import cli, registry
from zoo.errors import ZooError
from zoo.machine.logs import Curves
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput

long = pytest.mark.faults
TASKS = [entry.name for entry in zoo.list_tasks() if entry.origin == "zoo"]


class Overflow(torch.autograd.Function):
    """Passes its input on, and a gradient that overflows back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.inf


# ---- R12: NaN ------------------------------------------------------------------------------------


def _poison_data(monkeypatch, when) -> None:
    """NaN in one pixel of one picture, as its floats arrive at the loss."""
    views = registry.find_task("autoencoder").views

    def poisoned(self, batch):
        made = tuple(view.clone() for view in views(self, batch))
        if when():
            made[-1][0, 0, 0, 0] = torch.nan
        return made

    monkeypatch.setattr(registry.find_task("autoencoder"), "views", poisoned)


def _poison_loss(monkeypatch, when) -> None:
    forward = registry.find_task("autoencoder").forward

    def poisoned(self, views):
        out = forward(self, views)
        return (
            TaskOutput(out.loss + torch.nan, out.logs | {"spoiled": out.loss.detach() * torch.nan}) if when() else out
        )

    monkeypatch.setattr(registry.find_task("autoencoder"), "forward", poisoned)


def _poison_gradient(monkeypatch, when) -> None:
    """The loss is finite, and so are all its terms."""
    forward = registry.find_task("autoencoder").forward

    def poisoned(self, views):
        out = forward(self, views)
        return TaskOutput(Overflow.apply(out.loss) if when() else out.loss, out.logs)

    monkeypatch.setattr(registry.find_task("autoencoder"), "forward", poisoned)


POISONS = {
    _poison_data: r"the loss of autoencoder is nan at epoch 1, batch 1 \(squared_error nan\)",
    _poison_loss: r"the loss of autoencoder is nan at epoch 1, batch 1 \(.*spoiled nan\)",
    _poison_gradient: r"the gradient of backbone\.model\.\S+ and of \d+ more of \d+ parameters isn't finite at epoch "
    r"1, batch 1 \(loss 0\.\d+, ",
}


@pytest.fixture
def at_batch(monkeypatch):
    """Makes functions that are true within one training batch, counted from 0, and nowhere else."""
    step, now, inside = PretextTask.training_step, [-1], [False]

    def counted(self, *given):
        now[0], inside[0] = now[0] + 1, True
        try:
            return step(self, *given)
        finally:
            inside[0] = False

    monkeypatch.setattr(PretextTask, "training_step", counted)
    return lambda number: lambda: inside[0] and now[0] == number


@pytest.fixture
def steps(monkeypatch) -> list:
    """One for each step that the optimizer has taken to its end."""
    done, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *given, **also: (step(self, *given, **also), done.append(1))[0]
    )
    return done


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=long)])
def test_r12_a_nan_ends_the_run_before_the_step(
    poison, accumulate, tmp_path, monkeypatch, at_batch, undisturbed, steps
):
    values = recipe(max_steps=6, accumulate=accumulate)
    with monkeypatch.context() as patched:
        poison(patched, at_batch(4))
        with pytest.raises(ZooError, match=POISONS[poison]):
            pretrain(values, tmp_path / "run")
    assert_finite(tmp_path / "run")
    assert state(tmp_path / "run")["global_step"] == len(steps) == (4 if accumulate == 1 else 2)
    assert_same(go_on(values, tmp_path / "run"), undisturbed(values))  # nothing of it is left in the state


@long
@pytest.mark.parametrize("task", TASKS)
def test_r12_a_gradient_that_overflows_in_every_task(task, tmp_path, monkeypatch):
    forward = registry.find_task(task).forward
    monkeypatch.setattr(
        registry.find_task(task),
        "forward",
        lambda self, views: (out := forward(self, views)) and TaskOutput(Overflow.apply(out.loss), out.logs),
    )
    with pytest.raises(ZooError, match="the gradient of .* isn't finite at epoch 0, batch 0"):
        pretrain(recipe(task), tmp_path / "run")
    assert_finite(tmp_path / "run")


@pytest.mark.parametrize("size", [1e25, torch.inf])
def test_r12_a_gradient_whose_square_overflows(size, tmp_path, monkeypatch, steps):
    """Each of its numbers may be finite: Adam's mean of squares wouldn't be, and nothing would be learned from there
    on.
    """
    forward = registry.find_task("autoencoder").forward

    class Large(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * size

    monkeypatch.setattr(
        registry.find_task("autoencoder"),
        "forward",
        lambda self, views: TaskOutput(Large.apply(forward(self, views).loss)),
    )
    with pytest.raises(ZooError, match="the gradient of .* isn't finite at epoch 0, batch 0"):
        pretrain(recipe(max_steps=3), tmp_path / "run")
    assert_finite(tmp_path / "run")
    assert steps == []


# ---- R13: a learning rate of 1e20 ----------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=long), pytest.param("lars", marks=long)])
@pytest.mark.parametrize("rate", [1e20, pytest.param(1e38, marks=long)])
def test_r13_an_absurd_learning_rate(optimizer, rate, tmp_path):
    values = recipe(max_steps=20) | {"optim": {"name": optimizer, "lr": rate, "warmup": 0.0}}
    with pytest.raises(
        ZooError,
        match=r"(isn't finite|the loss of autoencoder is (nan|inf)) at epoch \d+, batch \d+ \(.*\); a lower optim\.lr "
        r"or a longer optim\.warmup",
    ):
        pretrain(values, tmp_path / "run")
    assert_finite(tmp_path / "run")


# ---- R19: the logger -----------------------------------------------------------------------------


def _one_warning(caught: list, kind: str) -> str:
    (found,) = [str(w.message) for w in caught if "logger failed" in str(w.message)]
    assert found.startswith(f"the {kind} logger failed and is left out from here on")
    return found


@pytest.mark.parametrize("when", [0, 3])
def test_r19_the_disk_of_the_curves_is_full(when, tmp_path, monkeypatch, undisturbed):
    """From the first row on, or from a later one. The weights are those of the run whose curves were written."""
    values, calls, log = recipe(), iter(range(10**6)), Curves.log_metrics
    whole = undisturbed(values)

    def full(self, *given):
        if next(calls) >= when:
            os.write(os.open("/dev/full", os.O_WRONLY), b"x")  # ENOSPC, from the kernel
        return log(self, *given)

    monkeypatch.setattr(Curves, "log_metrics", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = pretrain(values, tmp_path / "run")
    assert os.strerror(errno.ENOSPC) in _one_warning(caught, "csv")
    assert (run / "checkpoint/model.safetensors").read_bytes() == (whole / "checkpoint/model.safetensors").read_bytes()
    assert len(curves(run)) == when if when else not (run / "metrics.csv").exists()


@pytest.mark.parametrize(
    "where", ["log", "init", pytest.param("finish", marks=long), pytest.param("log_artifact", marks=long)]
)
def test_r19_wandb_raises(where, tmp_path, monkeypatch, undisturbed):
    """Whatever of it raises: nothing is sent anywhere, since wandb itself is never begun."""
    wandb = pytest.importorskip("wandb")
    values = recipe()
    whole = undisturbed(values)

    class Run:
        def __getattr__(self, name):
            def call(*given, **also):
                if name == where:
                    raise ConnectionError("no route to wandb")

            return call

    def init(**given):
        if where == "init":
            raise ConnectionError("no route to wandb")
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(
        "lightning.pytorch.loggers.WandbLogger.__init__",
        lambda self, experiment: self.__dict__.update(_experiment=experiment),
    )
    monkeypatch.setattr(
        "lightning.pytorch.loggers.WandbLogger.log_metrics",
        lambda self, metrics, step=None: self.__dict__["_experiment"].log(metrics),
    )
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger.finalize", lambda self, status: None)
    monkeypatch.setattr(
        "lightning.pytorch.loggers.WandbLogger.experiment", property(lambda self: self.__dict__["_experiment"])
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = zoo.pretrain(values, out=tmp_path / "run", logger="wandb", progress=False)
    assert "no route to wandb" in _one_warning(caught, "wandb")
    assert (run / "checkpoint/model.safetensors").read_bytes() == (whole / "checkpoint/model.safetensors").read_bytes()


# ---- R20: devices --------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_r20_there_is_no_gpu(tmp_path, capsys):
    with pytest.raises(
        ZooError, match=r"trainer\.accelerator is gpu, and torch finds none.*; set it to auto or cpu"
    ) as caught:
        pretrain(recipe(accelerator="gpu"), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists(), "refused before anything is written"
    Path("small.yaml").write_text(yaml.safe_dump(recipe(accelerator="gpu")))
    assert cli.main(["pretrain", "small.yaml", "--out", "run"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("zoo: trainer.accelerator is gpu") and err.count("\n") == 1


def test_r20_bf16_that_the_gpu_does_not_have(tmp_path, monkeypatch):
    """Functions stand in for the GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *given: "an old one")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(ZooError, match="^trainer.precision is bf16, which an old one doesn't have; set it to 32$"):
        zoo.pretrain(recipe(accelerator="auto"), out=tmp_path / "run", progress=False, **{"trainer.precision": "bf16"})
    assert not (tmp_path / "run").exists(), "refused before anything is written"


def test_r20_memory_runs_out(tmp_path, monkeypatch, at_batch, undisturbed):
    """In the middle of a run: one sentence, and what was saved is kept."""
    values, forward = recipe(), registry.find_task("autoencoder").forward
    with monkeypatch.context() as patched:
        now = at_batch(4)
        patched.setattr(
            registry.find_task("autoencoder"),
            "forward",
            lambda self, views: (_too_much() if now() else None) or forward(self, views),
        )
        with pytest.raises(
            ZooError, match=r"a step of data\.batch_size 4 doesn't fit into the memory; give it a smaller one.*--resume"
        ) as caught:
            pretrain(values, tmp_path / "run")
    assert "\n" not in str(caught.value) and state(tmp_path / "run")["global_step"] == 4
    assert_same(go_on(values, tmp_path / "run"), undisturbed(values))


def _too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)  # an exbibyte, which torch's allocator refuses

"""Precision: a recipe's bf16 is for machines that have it, and what a run was begun in it is ended in."""

from __future__ import annotations

import pytest
import torch
from run_example import place, recipe, train  # noqa: F401

import zoo
from zoo.card import read_card
from zoo.errors import ZooError
from zoo.machine.devices import computes_bf16
from zoo.recipe import read
from zoo.tasks.base import PretextTask

BF16 = {"trainer": {"max_steps": 3, "precision": "bf16", "accelerator": "cpu"}, "data": {"size": 20}}


@pytest.fixture
def without_bf16(monkeypatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, "avx512_f": True, "avx512_bf16": False})


@pytest.fixture
def dies(monkeypatch):
    """In the third step."""
    step, seen = PretextTask.training_step, []
    monkeypatch.setattr(
        PretextTask,
        "training_step",
        lambda self, *given: (seen.append(1), 1 / 0 if len(seen) == 3 else step(self, *given))[1],
    )


def precisions(run) -> set[str]:
    """As the run's recipe says and, where it has ended, its card."""
    card = run / "checkpoint"
    return {
        read(run / "recipe.yaml")["trainer"]["precision"],
        *([read_card(card)["recipe"]["trainer"]["precision"]] if card.exists() else []),
    }


@pytest.fixture
def seen(monkeypatch) -> set:
    """Types of what the backbone gave in training."""
    found, step = set(), PretextTask.training_step

    def watched(self, *given):
        handle = next(
            layer for layer in self.backbone.modules() if isinstance(layer, torch.nn.Conv2d)
        ).register_forward_hook(lambda layer, x, out: found.add(out.dtype))
        try:
            return step(self, *given)
        finally:
            handle.remove()

    monkeypatch.setattr(PretextTask, "training_step", watched)
    return found


@pytest.mark.parametrize(
    ("known", "has"),
    [
        ({}, False),
        ({"avx2": True, "avx512_f": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
    ],
)
def test_what_a_processor_has(known, has, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: known)
    assert computes_bf16("cpu") is has


def test_a_recipe_is_trained_in_32_bits_where_there_are_no_instructions_for_bf16(tmp_path, without_bf16, seen, capsys):
    run = train(tmp_path / "run", **BF16)
    assert (
        capsys.readouterr().err.splitlines()[0]
        == "this machine has no instructions for bf16, so trainer.precision is 32 instead"
    )
    assert precisions(run) == {"32"} and seen == {torch.float32}


def test_and_in_bf16_where_there_are(tmp_path, with_bf16, seen, capsys):
    run = train(tmp_path / "run", **BF16)
    assert "precision" not in capsys.readouterr().err and precisions(run) == {"bf16"} and seen == {torch.bfloat16}


def test_what_is_asked_for_beside_the_recipe_is_done(tmp_path, without_bf16, seen, capsys):
    run = zoo.pretrain(recipe(**BF16), out=tmp_path / "run", progress=False, **{"trainer.precision": "bf16"})
    assert "precision" not in capsys.readouterr().err and precisions(run) == {"bf16"} and seen == {torch.bfloat16}


def test_a_gpu_without_bf16(tmp_path, monkeypatch):
    """Functions stand in for it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert computes_bf16("auto") is computes_bf16("gpu") is False


@pytest.mark.parametrize("out", ["run", None])
def test_a_run_that_was_begun_in_32_bits_is_resumed_in_them(out, tmp_path, without_bf16, dies, monkeypatch):
    """On the machine that has no other, and on one that has, by the same command."""
    values = recipe(**BF16)
    with pytest.raises(ZeroDivisionError):
        zoo.pretrain(values, out=out, progress=False, **{"trainer.save_every": 1})
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    run = zoo.pretrain(values, out=out, resume=True, progress=False, **{"trainer.save_every": 1})
    assert precisions(run) == {"32"} and read_card(run / "checkpoint")["steps"] == 3


def test_a_run_that_was_begun_in_bf16_is_resumed_in_it(tmp_path, with_bf16, dies, seen, monkeypatch, capsys):
    values = recipe(**BF16)
    with pytest.raises(ZeroDivisionError):
        zoo.pretrain(values, out=tmp_path / "run", progress=False, **{"trainer.save_every": 1})
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {})
    run = zoo.pretrain(values, out=tmp_path / "run", resume=True, progress=False, **{"trainer.save_every": 1})
    assert precisions(run) == {"bf16"} and seen == {torch.bfloat16} and "precision" not in capsys.readouterr().err


def test_a_recipe_that_was_changed_to_bf16_is_another(tmp_path, with_bf16, dies):
    """Nothing had lowered it."""
    values = recipe(trainer={"max_steps": 3, "accelerator": "cpu"}, data={"size": 20})
    with pytest.raises(ZeroDivisionError):
        zoo.pretrain(values, out=tmp_path / "run", progress=False, **{"trainer.save_every": 1})
    with pytest.raises(ZooError, match="begun with trainer.precision '32', and the recipe now says 'bf16'"):
        zoo.pretrain(recipe(**BF16), out=tmp_path / "run", resume=True, progress=False, **{"trainer.save_every": 1})


def test_a_run_is_not_resumed_in_another_precision_that_is_asked_for(tmp_path, without_bf16, dies):
    with pytest.raises(ZeroDivisionError):
        zoo.pretrain(recipe(**BF16), out=tmp_path / "run", progress=False, **{"trainer.save_every": 1})
    with pytest.raises(ZooError, match="begun with trainer.precision '32', and the recipe now says 'bf16'"):
        zoo.pretrain(
            recipe(**BF16),
            out=tmp_path / "run",
            resume=True,
            progress=False,
            **{"trainer.save_every": 1, "trainer.precision": "bf16"},
        )

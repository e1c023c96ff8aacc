"""C1, C2: what earlier versions wrote still loads and means the same; a curve of losses is still the stored one.

`tests/fixtures` holds a tiny checkpoint of each of two earlier commits (`simclr/`, `mae/`), the features that the
commit's own code gave (`.json`), and the run's resolved recipe (`.yaml`). They are never made anew: a change that can't
read them owes a migration. `curve.json` is made anew, with `python tests/faults/test_compatibility.py`, by a change
that is meant to alter training, and only then.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import lightning as L
import pytest
import timm
import torch

import zoo
from zoo import recipe as recipes
from zoo.card import read_card
from zoo.checkpoint.read import load_backbone
from zoo.data.module import create_data
from zoo.machine.provenance import machine
from zoo.tasks.load import load_task
from zoo.train.fit import build, check_fit

FIXTURES = Path(__file__).parents[1] / "fixtures"
OLD = ["simclr", "mae"]
CURVE = FIXTURES / "curve.json"


def pictures(channels: int, size: int) -> torch.Tensor:
    """Two fixed images (2, channels, size, size) in [0, 1]."""
    count = 2 * channels * size * size
    return 0.5 + 0.5 * torch.sin(torch.arange(count).view(2, channels, size, size) * 0.37).float()


@pytest.mark.parametrize("name", OLD)
def test_c1_an_earlier_commits_checkpoint_gives_its_features(name):
    stored = torch.tensor(json.loads((FIXTURES / f"{name}.json").read_text())["features"])
    backbone = load_backbone(FIXTURES / name)
    x = pictures(backbone.channels, backbone.size)
    model, transform = zoo.load(FIXTURES / name)
    by_timm = timm.create_model(f"local-dir:{FIXTURES / name}", pretrained=True).eval()
    shape = (1, -1, 1, 1)
    normal = (x - torch.tensor(transform.mean).view(shape)) / torch.tensor(transform.std).view(shape)
    with torch.no_grad():
        for found in (backbone.pool(x), model(normal), by_timm(normal)):
            torch.testing.assert_close(found, stored, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OLD)
def test_c1_an_earlier_commits_card_and_heads_are_read(name):
    card, task = read_card(FIXTURES / name), load_task(FIXTURES / name)
    assert card["schema"] == 1 and card["task"]["name"] == task.name == name
    assert json.loads((FIXTURES / f"{name}.json").read_text())["commit"] == card["commit"][:7]
    assert card["parameters"] == sum(p.numel() for p in task.backbone.model.parameters())
    heads, fresh = task.heads(), build(card["recipe"], check_fit(card["recipe"])).heads()
    assert heads.keys() == fresh.keys() and heads
    assert any(
        not torch.equal(value, fresh[key]) for key, value in heads.items()
    )  # trained ones, not those of the beginning


@pytest.mark.parametrize("name", OLD)
def test_c1_an_earlier_commits_resolved_recipe_still_resolves(name):
    old = recipes.read(FIXTURES / f"{name}.yaml")
    new = recipes.resolve(old, {})
    said = dict(recipes.flat(new))
    for key, value in recipes.flat(old):
        assert said.get(key) == value, key  # keys that came later have their defaults; none has changed
    assert dict(recipes.flat(recipes.resolve(read_card(FIXTURES / name)["recipe"], {}))) == said


class Losses(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, task, outputs, *ignored) -> None:
        self.seen.append(float(outputs["loss"]))


def curve() -> list[float]:
    """The losses of 20 steps on the CPU in 32 bits, everything but the data from seed 0."""
    recipe = recipes.resolve(recipes.read(FIXTURES / "simclr.yaml"), {})
    data, losses = create_data("digits", batch_size=64), Losses()
    data.seed = 0
    trainer = L.Trainer(
        max_steps=20,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[losses],
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer.fit(build(recipe, check_fit(recipe)), data)
    finally:
        torch.set_num_threads(threads)
    return losses.seen


def here() -> dict[str, str]:
    """On what sums are rounded as they are: other kernels add in another order, and 20 steps make more of it."""
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "arch": platform.machine(),
        "cpu": machine("cpu")["cpu"],
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }


def test_c2_twenty_steps_give_the_stored_losses():
    """Within 1e-6 where the curve was made; within 1e-3 elsewhere, which still sees another order, view, schedule or
    loss.
    """
    stored = json.loads(CURVE.read_text())
    tolerance = 1e-6 if stored["made_on"] == here() else 1e-3
    assert curve() == pytest.approx(stored["losses"], rel=tolerance)


if __name__ == "__main__":
    CURVE.write_text(json.dumps({"made_on": here(), "losses": curve()}, indent=1) + "\n")

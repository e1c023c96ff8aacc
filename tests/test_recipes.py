"""Every recipe that ships can be read, is complete, and runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from zoo.card import read_card
from zoo.pretrain import pretrain
from zoo.recipe import list_recipes, read, resolve
from zoo.registry import list_tasks
from zoo.tasks.load import load_task

RECIPES = sorted((Path(__file__).parent.parent / "recipes" / "pretrain").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_smoke(path, tmp_path):
    run = pretrain(path, out=tmp_path / "run", smoke=True, progress=False)
    card = read_card(run / "checkpoint")
    assert card["steps"] == 2 and card["name"] == path.stem
    assert load_task(run / "checkpoint").name == card["task"]["name"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_page_that_says_what_it_is(path):
    text = path.read_text()
    assert text.startswith("# ") and len(text.splitlines()) < 40
    recipe = read(path)
    assert path.stem.startswith(recipe["task"]["name"] + "-"), "a recipe is named task-backbone-data"
    resolved = resolve(recipe, {})
    assert resolve(resolved, {}) == resolved


COSTS = r"# Costs: \d+\.\d minutes and \d+\.\d GB on \d+ thread\(s\) of .+\."


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_header_tells_what_a_recipe_costs_and_is_worth(path):
    """As benchmarks/table.py and benchmarks/recipes.py write it; `not yet` only where neither has measured it."""
    costs, measured = path.read_text().splitlines()[1:3]
    if costs == "# Costs: not yet.":
        recipe, folder = read(path), path.parent.parent
        same = (recipe["task"]["name"], recipe["data"]["name"], recipe["backbone"])
        assert measured == "# Measured: not yet."
        assert same not in [
            (row["task"], row["data"], row["backbone"]) for row in json.loads((folder / "table.json").read_text())
        ]
        assert path.stem not in [row["recipe"] for row in json.loads((folder / "results.json").read_text())]
    else:
        assert re.fullmatch(COSTS, costs) and re.match(r"# Measured: kNN.* \d+\.\d.*\)\.$", measured)


def test_every_task_has_a_recipe_and_every_recipe_is_listed():
    assert {task.name for task in list_tasks() if task.origin.startswith("zoo")} <= {
        read(path)["task"]["name"] for path in RECIPES
    }
    assert {path.stem for path in RECIPES} <= {entry[0] for entry in list_recipes()}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_takes_anybodys_pictures_as_it_is(path, pictures, tmp_path, monkeypatch, capfd):
    """Nothing but the folder is given: the size and the batch are what the recipe and the folder allow, and are written
    down.
    """
    monkeypatch.chdir(tmp_path)
    run = pretrain(
        path, progress=False, data={"name": f"folder:{pictures}"}, trainer={"max_steps": 1, "validate_every": 0}
    )
    saved, card = read(run / "recipe.yaml"), read_card(run / "checkpoint")
    patch = saved["backbone"].get("patch_size", 1)
    assert (saved["data"]["size"] or 64) % patch == 0 and abs((saved["data"]["size"] or 64) - 64) <= 15
    assert card["recipe"] == saved and card["data"]["size"] == (saved["data"]["size"] or 64)
    assert saved["data"]["batch_size"] == card["samples_seen"] < read(path)["data"]["batch_size"]
    assert (
        f"images, so a step takes {saved['data']['batch_size']} instead of {read(path)['data']['batch_size']}"
        in capfd.readouterr().err
    )

"""Plugins, checkpoints and a recipe of 0.1, frozen in tests/compat/ and never edited: each works unchanged."""

# ruff: noqa: F811, since fixtures are imported

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import timm
import torch
from run_example import place  # noqa: F401
from site_example import Site, as_found, says, site  # noqa: F401

import zoo
from zoo import recipe as recipes
from zoo.card import read_card
from zoo.checkpoint.read import load_backbone
from zoo.registry import find_task, list_tasks
from zoo.tasks.base import PretextTask
from zoo.tasks.load import load_task
from zoo.testing import check_task

FROZEN = Path(__file__).parent / "compat"
PLUGINS = {"blank-square": "zoo-blank-square", "align-uniform": "zoo-align-uniform"}
CHECKPOINTS = ("mae", "simclr")
SHORT = {"data.name": "digits", "data.size": 16, "data.batch_size": 64, "trainer.max_steps": 4}


def install(site: Site, distribution: str) -> Path:
    """Install a frozen package as pip would: its modules, and its entry points as its pyproject.toml has them."""
    folder = FROZEN / distribution
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    module = distribution.replace("-", "_")
    shutil.copytree(folder / module, site.folder / module)
    site.install(distribution, project["entry-points"]["zoo.tasks"], version=project["version"])
    return folder


@pytest.fixture(params=PLUGINS)
def plugin(request, site) -> tuple[str, Path]:
    """(its task's name, its folder) of each frozen plugin, installed and not yet imported."""
    for module in [name for name in sys.modules if name.startswith(("zoo_blank_square", "zoo_align_uniform"))]:
        del sys.modules[module]
    return request.param, install(site, PLUGINS[request.param])


def recipe_of(folder: Path) -> Path:
    (path,) = (folder / "recipes").glob("*.yaml")
    return path


def test_a_plugin_is_found_by_its_entry_point(plugin, site):
    name, folder = plugin
    (entry,) = (entry for entry in list_tasks() if entry.name == name)
    assert (entry.origin, entry.problem) == (f"{folder.name} 0.1.0", None)
    module = folder.name.replace("-", "_")
    assert f"{module}.task" not in sys.modules, "listing imports no plugin"
    task = find_task(name)
    assert issubclass(task, PretextTask) and task.name == name
    assert Path(sys.modules[task.__module__].__file__).is_relative_to(site.folder)


def test_a_plugin_keeps_the_contract(plugin):
    name, _ = plugin
    check_task(find_task(name))
    check_task(name)


def test_a_plugins_own_recipe_runs_and_its_checkpoint_evaluates(plugin, tmp_path, says):
    name, folder = plugin
    run = zoo.pretrain(recipe_of(folder), out=tmp_path / "run", progress=False, **SHORT)
    card = read_card(run / "checkpoint")
    assert card["task"]["name"] == name and card["schema"] == 1 and card["steps"] == 4
    pictures = {"blank-square": "guess.png", "align-uniform": "views.png"}
    assert pictures[name] in {entry["path"] for entry in card["files"]}, "what its method `picture` draws"
    model, transform = zoo.load(run)
    assert model(torch.rand(2, 3, transform.size, transform.size)).shape == (2, model.num_features)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        task, backbone = load_task(run / "checkpoint"), load_backbone(run / "checkpoint")
        assert task.name == name and torch.equal(task.features(x)["backbone"], backbone.pool(x))
    (row,) = zoo.evaluate(run, protocols=("knn",), labels=(5,), baselines=False)
    assert 0 < row["value"] <= 100
    smoke = ["pretrain", str(recipe_of(folder)), "--smoke", "--no-progress", "--out", str(tmp_path / "smoke"), "--json"]
    code, out, err = says(*smoke)
    assert code == 0, err
    assert json.loads(out)["checkpoint"] == str(tmp_path / "smoke" / "checkpoint")


def test_a_plugins_own_tests_pass(site):
    tests = [install(site, distribution) / "tests" for distribution in PLUGINS.values()]
    pytest_here = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(site.folder),
    ]
    done = subprocess.run(
        [*pytest_here, *map(str, tests)],
        check=False,
        capture_output=True,
        text=True,
        cwd=site.folder,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    written = sum(path.read_text().count("\ndef test_") for folder in tests for path in folder.glob("test_*.py"))
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"(\d+) passed", done.stdout)[1] == str(written) and written >= 12


# ---- checkpoints and recipes ---------------------------------------------------------------------


def images(channels: int, size: int) -> torch.Tensor:
    """Two fixed images (2, channels, size, size) in [0, 1], those whose features were stored."""
    count = 2 * channels * size * size
    return 0.5 + 0.5 * torch.sin(torch.arange(count).view(2, channels, size, size) * 0.37).float()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_schema_1_gives_its_stored_features(name):
    folder = FROZEN / "schema-1" / name
    stored = torch.tensor(json.loads(folder.with_suffix(".json").read_text())["features"])
    assert read_card(folder)["schema"] == 1
    backbone, task = load_backbone(folder), load_task(folder)
    model, transform = zoo.load(folder)
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = images(backbone.channels, backbone.size)
    normal = (x - torch.tensor(transform.mean).view(1, -1, 1, 1)) / torch.tensor(transform.std).view(1, -1, 1, 1)
    assert task.name == name and task.heads()
    with torch.no_grad():
        for found in (backbone.pool(x), task.features(x)["backbone"], model(normal), by_timm(normal)):
            torch.testing.assert_close(found, stored, rtol=1e-5, atol=1e-5)


def test_a_recipe_resolves_and_smokes(tmp_path):
    (path,) = FROZEN.glob("*.yaml")
    old = recipes.read(path)
    resolved = recipes.resolve(old)
    said = dict(recipes.flat(resolved))
    assert all(said[key] == value for key, value in recipes.flat(old)) and recipes.resolve(resolved) == resolved
    run = zoo.pretrain(path, out=tmp_path / "run", smoke=True, progress=False)
    assert read_card(run / "checkpoint")["task"]["name"] == "simclr"


# ---- what plugins import -------------------------------------------------------------------------

PATHS = """
zoo.backbones: Backbone create_backbone
zoo.data.generated: generate
zoo.errors: ZooError
zoo.grid: image_grid rows_of
zoo.heads: projector mlp ConvDecoder TransformerDecoder
zoo.losses: gather normalized nt_xent
zoo.masks: random_mask
zoo.optim: Optim
zoo.ranges: Count Part Positive Range Share
zoo.recipe: read resolve
zoo.registry: register_task list_tasks find_task
zoo.tasks.base: PretextTask TaskOutput
zoo.testing: check_task
zoo.views: random_resized_crop simclr_view to_float
"""


@pytest.mark.parametrize("line", PATHS.strip().split("\n"))
def test_import_paths_of_0_1_lead_to_the_same_things(line):
    module, _, names = line.partition(": ")
    for name in names.split():
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"

"""Packages with tasks of their own, really built and installed by pip: the example, and what `zoo new-task` writes."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import zoo
from zoo import cli
from zoo.errors import ZooError
from zoo.newtask import KINDS, RECIPES, class_name, new_task
from zoo.recipe import read

ROOT = Path(zoo.__file__).parent.parent
RECIPE = "recipes/align-uniform-test-resnet-fashion-mnist.yaml"


# ---- installed -----------------------------------------------------------------------------------


class Installed:
    """The example and a skeleton of each kind, copied, built and installed into a folder; and commands that find them
    there.
    """

    def __init__(self, place: Path):
        self.site, self.example, self.elsewhere = (place / name for name in ("site", "zoo-align-uniform", "elsewhere"))
        self.skeletons = [place / f"zoo-my-{kind}" for kind in KINDS]
        self.elsewhere.mkdir()
        skipped = shutil.ignore_patterns("__pycache__", "runs", ".pytest_cache", "*.egg-info")
        shutil.copytree(
            ROOT / "examples" / "zoo-align-uniform", self.example, ignore=skipped
        )  # so that building leaves nothing in the checkout
        for kind, skeleton in zip(KINDS, self.skeletons, strict=True):
            assert cli.main(["new-task", f"my-{kind}", "--kind", kind, "--out", str(skeleton)]) == 0
        self.environment = os.environ | {
            "PYTHONPATH": f"{self.site}{os.pathsep}{ROOT}",
            "ZOO_HOME": str(place / "home"),
            "ZOO_OFFLINE": "1",
        }
        self.python(
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--disable-pip-version-check",
            "--target",
            self.site,
            self.example,
            *self.skeletons,
        )

    def python(self, *words: str | Path) -> str:
        """What Python prints, run from an empty folder."""
        words = (sys.executable, *map(str, words))
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, cwd=self.elsewhere, env=self.environment
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("plugins"))


def test_the_packages_hold_their_module_and_nothing_else(installed):
    assert {path.name for path in installed.site.iterdir() if path.name != "bin"} == {
        "zoo_align_uniform",
        "zoo_align_uniform-0.1.0.dist-info",
        *(f"zoo_my_{kind}" for kind in KINDS),
        *(f"zoo_my_{kind}-0.1.0.dist-info" for kind in KINDS),
    }


def test_they_are_listed_with_their_distributions(installed):
    tasks = {task["name"]: task for task in json.loads(installed.python("-m", "zoo.cli", "list", "tasks", "--json"))}
    example = {key: tasks["align-uniform"][key] for key in ("from", "about", "problem")}
    assert example == {
        "from": "zoo-align-uniform 0.1.0",
        "about": "Alignment and uniformity, a pretext task for the pretext zoo.",
        "problem": None,
    }
    for kind in KINDS:
        assert (tasks[f"my-{kind}"]["from"], tasks[f"my-{kind}"]["problem"]) == (f"zoo-my-{kind} 0.1.0", None)
    assert tasks["simclr"]["from"] == "zoo"
    data = {row["name"]: row for row in json.loads(installed.python("-m", "zoo.cli", "list", "data", "--json"))}
    assert data["my-audio-tones"]["from"] == "zoo-my-audio 0.1.0" and data["digits"]["from"] == "zoo"


COMMANDS = """
import contextlib, io, json, sys
from zoo.cli import main

for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*words, "--json"]) == 0
    print(json.dumps(json.loads(out.getvalue())))
import zoo_align_uniform.task
print(json.dumps(zoo_align_uniform.task.__file__))
"""


def test_the_example_is_described_and_trained(installed):
    recipe, run = str(installed.example / RECIPE), installed.elsewhere / "run"
    words = [
        ["info", "align-uniform"],
        ["info", "my-image"],
        ["pretrain", recipe, "--help"],
        ["pretrain", recipe, "--smoke", "--out", str(run), "--task.flip", "0.25", "--no-progress"],
    ]
    lines = [json.loads(line) for line in installed.python("-c", COMMANDS, json.dumps(words)).splitlines()]
    example, idea, described, trained, module = lines
    assert list(example["arguments"]) == ["uniformity", "sharpness", "hidden", "outputs", "smallest_crop", "flip"]
    assert example["arguments"]["smallest_crop"] == "0.3" and example["from"] == "zoo-align-uniform 0.1.0"
    assert "alignment: z1 near z2" in example["text"] and "arxiv.org/abs/2005.10242" in example["text"]
    assert idea["arguments"] == {"hidden": "0.4", "smallest_crop": "0.5", "flip": "0.5"} and idea["problem"] is None
    keys = {row["key"]: row for row in described["keys"] if row["key"].startswith("task.")}
    assert (
        list(keys) == ["task.name", *(f"task.{key}" for key in example["arguments"])]
        and keys["task.flip"]["default"] == 0.5
    )
    assert "mirrored" in keys["task.flip"]["about"] and keys["task.smallest_crop"]["value"] == 0.3
    assert trained == {"run": str(run), "checkpoint": str(run / "checkpoint")}
    card = json.loads((run / "checkpoint" / "zoo.json").read_text())
    assert (card["task"]["name"], card["task"]["flip"], card["task"]["uniformity"], card["steps"]) == (
        "align-uniform",
        0.25,
        1.0,
        2,
    )
    assert {"model.safetensors", "heads.safetensors", "config.json", "README.md"} <= {
        path.name for path in (run / "checkpoint").iterdir()
    }
    assert Path(module).is_relative_to(installed.site), "another zoo-align-uniform than the one just installed"


def test_their_own_tests_pass(installed):
    out = installed.python(
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-q",
        "-rs",
        "--import-mode=importlib",
        "--rootdir",
        installed.elsewhere,
        installed.example / "tests",
        *(skeleton / "tests" for skeleton in installed.skeletons),
    )
    passed = re.search(r"(\d+) passed", out)
    files = [path for folder in (installed.example, *installed.skeletons) for path in folder.glob("tests/test_*.py")]
    tests = sum(path.read_text().count("\ndef test_") for path in files)
    assert passed and int(passed[1]) == tests >= 20 and not re.search("skipped|failed|error", out), out


# ---- the skeleton --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "my-idea",
        "pretext",
        "task",
        "my-task",
        "3d-puzzle",
        "class",
        "x",
        "random-resized-crop",
        "123",
        "1e3",
        "true",
        "null",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_is_complete_under_every_name(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = new_task(name, kind=kind)
    module = "zoo_" + name.replace("-", "_")
    assert folder == Path(f"zoo-{name}") and {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } == {
        "README.md",
        "pyproject.toml",
        f"{module}/__init__.py",
        f"{module}/task.py",
        "tests/test_task.py",
        f"recipes/{name}-{RECIPES[kind]}.yaml",
        *([f"{module}/data.py"] if kind == "audio" else []),
    }
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"zoo-{name}" and project["entry-points"]["zoo.tasks"] == {
        name: f"{module}.task:{class_name(name)}"
    }
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert not re.search("@[A-Z]+@", path.read_text()), f"{path} holds an unfilled name"
    tree = ast.parse((folder / module / "task.py").read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    (written,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    assert written.name == class_name(name) and written.name.isidentifier() and written.name not in imported
    ast.parse((folder / "tests" / "test_task.py").read_text())
    assert read(folder / "recipes" / f"{name}-{RECIPES[kind]}.yaml")["task"]["name"] == name, "as a word"
    assert "register_task" not in (folder / module / "task.py").read_text(), "its entry point registers it"


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_is_laid_out_as_the_zoos_own_code(kind, tmp_path):
    folder = new_task("my-idea", tmp_path / "idea", kind)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert max(map(len, path.read_text().splitlines())) <= 120, path
    ruff = shutil.which("ruff") or shutil.which("ruff", path=Path(sys.executable).parent)
    for words in (["check"], ["format", "--check"]) if ruff else ():
        done = subprocess.run(
            [ruff, *words, "--no-cache", "--config", ROOT / "pyproject.toml", "."],
            check=False,
            capture_output=True,
            text=True,
            cwd=folder,
        )
        assert done.returncode == 0, done.stdout


def test_an_unknown_kind_of_task(tmp_path, capsys):
    with pytest.raises(ZooError, match="'txet' is not a kind of task; did you mean text?"):
        new_task("my-idea", tmp_path / "out", "txet")
    assert cli.main(["new-task", "my-idea", "--kind", "smell", "--out", str(tmp_path / "out")]) == 2
    assert "--kind 'smell'; known: audio, image, pair, text" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["", "My-Idea", "my_idea", "my idea", "-idea", "idea-", "my--idea", "../idea", "\u00fcber", "idea\n", "a.b"]
)
def test_names_that_are_none(name, tmp_path):
    with pytest.raises(
        ZooError, match="can't name a task; use lower-case letters and digits, in words joined by hyphens"
    ):
        new_task(name, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_taken_name(tmp_path, capsys):
    with pytest.raises(ZooError, match="there is a task simclr already, from zoo; choose another name"):
        new_task("simclr", tmp_path / "out")
    assert (
        cli.main(["new-task", "mae", "--out", str(tmp_path / "out")]) == 2
        and "there is a task mae already" in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(ZooError, match=f"{out} exists and isn't empty; add --out ANOTHER-FOLDER"):
            new_task("my-idea", out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert (
        new_task("my-idea", tmp_path / "empty") == tmp_path / "empty"
        and (tmp_path / "empty" / "pyproject.toml").is_file()
    )
    with pytest.raises(ZooError, match="isn't empty"):  # and never over what was made before
        new_task("my-idea", tmp_path / "empty")

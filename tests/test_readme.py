"""Every command and every Python block of the README and of CONTRIBUTING runs. A line that nobody thought of here fails."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from zoo import cli, hub
from zoo.checkpoint import update_card
from zoo.pretrain import pretrain

ROOT = Path(__file__).parent.parent
# run by `.ci/run` as they stand, or by pip in test_plugin_package.py and by pytest itself
ELSEWHERE = {"pip install -e . && zoo quickstart", 'pip install -e ".[dev]" && pytest', "pip install -e zoo-my-task", "pytest tests/test_losses.py"}
SHORT = {"max_epochs=10": "max_steps=2, accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False",
         'data={"name": "folder:PATH"}': 'data={"name": "folder:PATH", "batch_size": 16}, trainer={"max_steps": 2}, progress=False',
         'create_data("folder:PATH")': 'create_data("folder:PATH", batch_size=16)'}          # there are 60 pictures


def blocks(kind: str) -> list:
    found = []
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        for number, body in enumerate(re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)):
            found.append(pytest.param(body, id=f"{name}-{number}"))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """A folder of pictures in two classes, and a hub with a small checkpoint under the name that the README uses."""
    place = tmp_path_factory.mktemp("readme")
    for number in range(60):
        path = place / "pictures" / ("dark" if number % 2 else "light") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 30), (number % 2 * 150 + number, number, 90)).save(path)
    recipe = {"data": {"name": "digits", "batch_size": 64, "size": 16}, "backbone": {"name": "test_resnet"},
              "task": {"name": "simclr", "hidden": 16, "outputs": 8}, "trainer": {"max_steps": 2, "validate_every": 0}}
    run = pretrain(recipe, out=place / "run", progress=False)
    update_card(run / "checkpoint", license="Apache-2.0")
    hub.push(run / "checkpoint", place / "hub", name="simclr-resnet10t-fashion-mnist")
    return {"pictures": place / "pictures", "hub": place / "hub", "run": run}


@pytest.fixture(autouse=True)
def place(made, tmp_path, monkeypatch):
    """A working folder with the recipes in it, and a hub whose checkpoint has numbers to reproduce."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_HUB", str(made["hub"]))
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


def shortened(line: str, pictures: Path) -> list[str]:
    """The words of a zoo command, with a real folder for PATH, and two steps where it trains."""
    words = [word.replace("PATH", str(pictures)) for word in shlex.split(line, comments=True)]
    if words[1] == "pretrain" and "--smoke" not in words:
        words += ["--data.batch_size", "16", "--trainer.max_steps", "2", "--no-progress"]
    return words


@pytest.mark.parametrize("body", blocks("bash"))
def test_commands(body, made, capsys):
    for line in filter(None, map(str.strip, body.splitlines())):
        if line in ELSEWHERE:
            continue
        assert line.startswith("zoo "), f"nothing here runs the documented command: {line}"
        assert cli.main(shortened(line, made["pictures"])[1:]) == 0, f"{line}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("body", blocks("python"))
def test_python(body, made):
    for text, short in SHORT.items():
        body = body.replace(text, short)
    exec(compile(body.replace("PATH", str(made["pictures"])), "a block of the documentation", "exec"), {"__name__": "documentation"})


def test_ci_runs_the_two_commands_of_the_readme():
    readme, gate = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert 'readme_command "## Start"' in gate and 'readme_command "## Test"' in gate
    for heading, command in (("## Start", "pip install -e . && zoo quickstart"), ("## Test", 'pip install -e ".[dev]" && pytest')):
        assert f"{heading}\n\n```bash\n{command}\n```" in readme


def test_every_recipe_the_documents_name_exists():
    named = set(re.findall(r"(?:simclr|mae|vae|autoencoder|colorize)-[a-z0-9-]+-(?:mnist|emoji)", (ROOT / "README.md").read_text()))
    there = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "recipes" / "pretrain").glob("*.yaml")}
    assert named and named <= set(there)

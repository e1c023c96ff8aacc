"""What the documents tell a reader to type is typed here: every command and every program in them runs, in the order in
which they stand there.

A line that isn't understood fails the test, so none can be forgotten. What would take minutes or ask the network is
made short, by the table SHORTENED; commands and programs themselves are run as they stand.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import itertools
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import launching
import lightning as L
import pytest
import timm
import torch

import zoo
from zoo import cli, registry
from zoo.checkpoint.write import update_card
from zoo.data.generated import generate
from zoo.data.named.catalogue import ENTRIES, Entry
from zoo.hub import hub
from zoo.hub import push as pushing
from zoo.recipe import list_recipes
from zoo.testing import check_task

ROOT = Path(zoo.__file__).parent.parent
DOCUMENTS = sorted(
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("examples/*/README.md")) if "```" in path.read_text()
)
INSTALLS = [
    "pip install -e . && zoo quickstart",
    'pip install -e ".[dev]" && pytest',
]  # which the gate, .ci/run, runs as they stand in the README
MENTIONED = [
    "zoo new-task",
    "zoo adapt",
    "zoo evaluate",
    "zoo export",
]  # spoken of within a line, and not to be typed without a name
NAMED = "simclr-resnet10t-fashion-mnist"  # the checkpoint that the documents speak of


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return [(language, text) for language, text in typed(path) if language not in ("line", "call")]


def typed(path: Path) -> list[tuple[str, str]]:
    """Every fenced block and, as a line or a call, every command and call of timm that stands between words, in
    order.
    """
    found = []
    for language, block, words in re.findall(
        r"^```(\w*)\n(.*?)^```|(?<!`)`([^`]+)`(?!`)", path.read_text(), re.MULTILINE | re.DOTALL
    ):
        words = " ".join(words.split())
        if block:
            found.append((language, block))
        elif re.match(r"(zoo|python|pytest|torchrun|srun|pip) ", words):
            found.append(("line", words))
        elif words.startswith("timm."):
            found.append(("call", words))
    return found


# ---- what is shorter than the documents say ------------------------------------------------------


def _one_small_step(resolved: dict) -> dict:
    batch = (
        {} if resolved["data"]["name"].startswith("folder:") else {"batch_size": 8}
    )  # of a folder it is the run's own business
    return resolved | {"trainer": resolved["trainer"] | {"max_steps": 1}, "data": resolved["data"] | batch}


def _short_runs(monkeypatch) -> None:
    run = importlib.import_module("zoo.pretrain")._Run
    init = run.__init__
    monkeypatch.setattr(
        run, "__init__", lambda self, name, resolved, *rest: init(self, name, _one_small_step(resolved), *rest)
    )


def _short_trainer(monkeypatch) -> None:
    monkeypatch.setattr(L, "Trainer", functools.partial(L.Trainer, max_steps=1))


def _small_sets(monkeypatch) -> None:
    for name in ("fashion-mnist", "emoji"):
        info = ENTRIES[name].info
        small = info.__class__(**vars(info) | {"splits": {"train": 120, "validation": 60, "test": 60}})
        monkeypatch.setitem(ENTRIES, name, Entry(small, None, f"{__name__}:read_{name.replace('-', '_')}"))


SHORTENED: list[tuple[Callable, str]] = [
    (
        _short_runs,
        "a recipe's run has one step, of eight pictures where it is on a named set: by its hundreds it takes minutes",
    ),
    (_short_trainer, "so has Lightning's own trainer"),
    (_small_sets, "Fashion-MNIST and emoji are 240 generated pictures: the network isn't asked"),
]


def _read(name: str, size: int) -> tuple[dict, dict]:
    made = generate(ENTRIES[name].info, size=size, images=240)
    return {field: values if isinstance(values, list) else values.numpy() for field, values in made.fields.items()}, {
        split: rows.numpy() for split, rows in made.splits.items()
    }


def read_fashion_mnist(raw, size, folder):
    return _read("fashion-mnist", size)


def read_emoji(raw, size, folder):
    return _read("emoji", size)


# ---- a place to type -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_hub(tmp_path_factory) -> Path:
    """A hub with the checkpoints that the documents name, each from a run of its recipe, in short, with a result to
    reproduce.
    """
    place = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ZOO_HOME", str(place / "home"))
        for shorten, _ in SHORTENED:
            shorten(patched)
        said = "".join(text for path in DOCUMENTS for _, text in blocks(path))
        for name in {
            NAMED,
            *(
                name
                for name, _, _ in list_recipes()
                if re.search(rf"(load|adapt|evaluate|reproduce|report|pull)\W+{name}", said)
            ),
        }:
            run = zoo.pretrain(name, out=place / name, progress=False)
            zoo.evaluate(run, protocols=("knn",), labels=(1.0,), save=True, baselines=False)
            update_card(run / "checkpoint", license="Apache-2.0")
            pushing.push(run, place / "hub")
    return place / "hub"


class Reader:
    """Somebody who types what a document says, from a copy of the folder that the document lies in."""

    def __init__(self, place: Path, document: Path, pictures: Path, monkeypatch):
        self.here, self.pictures, self.monkeypatch, self.said = place / "here", pictures, monkeypatch, ""
        self.checkpoint, self.places = pictures, itertools.count(1)
        self.here.mkdir()
        for path in document.parent.iterdir():  # links, so that nothing lands in the checkout
            if not path.name.startswith(".") and path.name not in ("runs", "adapted", "quickstart"):
                (self.here / path.name).symlink_to(path)
        monkeypatch.chdir(self.here)

    def block(self, language: str, text: str) -> None:
        if language == "line":
            self.line(self.filled(text) + (" --help" if text in MENTIONED else ""))
            return
        if language == "call":
            language, text = "python", "import timm\n" + text.replace("local-dir:PATH", f"local-dir:{self.checkpoint}")
        text = re.sub(r"\bPATH\b", str(self.pictures), text)
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, "a block of the document", "exec"), {"__name__": "__main__"})
            self.said += out.getvalue()
            return
        assert language == "bash", f"a block of {language or 'no language'} isn't run by anybody: {text}"
        for line in text.splitlines():
            self.line(line)

    def filled(self, text: str) -> str:
        """A line that stands between words, with something for each word in capitals that isn't the value of a
        choice.
        """
        meant = {
            "RECIPE": "simclr-test-resnet-fashion-mnist",
            "FOLDER": str(self.pictures),
            "DIR": f"dir-{next(self.places)}",
            "NAME": "another-task",
            "FILE.ckpt": "file.ckpt",
        }
        if "FILE.ckpt" in text:
            weights = {
                f"model.backbone.{key}": value
                for key, value in timm.create_model("resnet18", num_classes=0).state_dict().items()
            }
            torch.save({"state_dict": weights}, self.here / "file.ckpt")
        return re.sub(r"\b(RECIPE|FOLDER|DIR|NAME|FILE\.ckpt)\b", lambda word: meant[word[0]], text)

    def line(self, line: str) -> None:
        words = shlex.split(line, comments=True)
        if not words or line.strip() in INSTALLS:
            return
        kind = "pip install -e" if words[:3] == ["pip", "install", "-e"] and len(words) == 4 else words[0]
        assert kind in self.COMMANDS and not {"&&", "|", ">", ";"} & set(words), (
            f"nobody knows what to do with this line: {line}"
        )
        self.COMMANDS[kind](self, words)

    def zoo(self, words: list[str]) -> None:
        if "--trainer.devices" in words:  # it starts the second process itself, with its own command line
            short = [
                "--data.name",
                f"folder:{self.pictures}",
                "--trainer.max_steps",
                "1",
                "--trainer.validate_every",
                "0",
                "--no-progress",
            ]
            ((code, _, err),) = launching.finish([launching.start([*launching.command(words), *short])])
            assert code == 0, err
            return
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert cli.main(words[1:]) == 0, words
        self.said += out.getvalue()

    def install(self, words: list[str]) -> None:
        """What an editable installation comes to: its metadata and its code on the path. (That pip does so is seen in
        test_plugin_package.)
        """
        folder = Path(words[3].partition("[")[0]).resolve()  # without its extras
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        info = self.here.parent / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\nSummary: "
            f"{project['description']}\n"
        )
        (info / "entry_points.txt").write_text(
            "".join(
                f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
                for group, points in project["entry-points"].items()
            )
        )
        for path in (folder, info.parent):
            self.monkeypatch.syspath_prepend(str(path))

    def pytest(self, words: list[str]) -> None:
        passed = []

        class Count:
            def pytest_runtest_logreport(self, report):
                passed.extend([report.nodeid] if report.when == "call" and report.passed else [])

        code = pytest.main(
            ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir", str(self.here), *words[1:]],
            plugins=[Count()],
        )
        assert code == 0 and passed, words

    def torchrun(self, words: list[str]) -> None:
        """Of several processes none is this one, so that --smoke has to make the recipe small; likewise below."""
        code, _, err = launching.torchrun(*words[1:], "--smoke")
        assert code == 0, err

    def srun(self, words: list[str]) -> None:
        nodes, each, command = launching.read_srun(words)
        for code, _, err in launching.srun(nodes, each, *launching.command(command), "--smoke"):
            assert code == 0, err

    COMMANDS = {"zoo": zoo, "pip install -e": install, "pytest": pytest, "torchrun": torchrun, "srun": srun}


@pytest.fixture
def read(tmp_path, pictures, small_hub, monkeypatch) -> Callable[[Path], Reader]:
    for name, value in {"ZOO_HOME": tmp_path / "home", "ZOO_HUB": small_hub, "ZOO_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, str(value))
    for shorten, _ in SHORTENED:
        shorten(monkeypatch)
    monkeypatch.setattr(registry, "_here", dict(registry._here))
    modules = set(sys.modules)
    yield lambda document: Reader(tmp_path, document, pictures, monkeypatch)
    for name in set(sys.modules) - modules:
        if name.split(".")[0].startswith("zoo_"):  # plugins that were installed here alone
            del sys.modules[name]


# ---- the documents -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_a_document_can_be_typed_from_top_to_bottom(path, read, small_hub):
    reader = read(path)
    reader.checkpoint = small_hub / NAMED
    for language, text in typed(path):
        reader.block(language, text)
    assert {name for name in os.listdir(path.parent) if name in ("adapted", "my-task", "zoo-my-task")} == set(), (
        "something landed in the checkout"
    )


def test_the_gate_runs_what_is_not_run_here():
    """The two lines that install the project itself, word for word, each the only one of its block in the README."""
    found = [text.strip() for language, text in blocks(ROOT / "README.md") if language == "bash"]
    assert found[:2] == INSTALLS and "eval" in (ROOT / ".ci/run").read_text()
    assert not [
        line
        for path in DOCUMENTS
        if path != ROOT / "README.md"
        for _, text in blocks(path)
        for line in text.splitlines()
        if line.strip() in INSTALLS
    ]


def test_the_author_of_a_task_sees_it_listed(read):
    reader = read(ROOT / "README.md")
    (text,) = [text for language, text in blocks(ROOT / "README.md") if "zoo new-task" in text]
    reader.block("bash", text)
    (line,) = [line for line in reader.said.splitlines() if line.split()[:1] == ["my-task"]]
    assert "zoo-my-task 0.1.0" in line and "BROKEN" not in line
    check_task(registry.find_task("my-task"))


def test_the_owner_of_pictures_gets_a_classifier(read):
    reader = read(ROOT / "README.md")
    (text,) = [text for language, text in blocks(ROOT / "README.md") if "zoo.adapt(" in text]
    reader.block("python", text)
    value, baselines, folder = re.fullmatch(r"(\S+) ({.*}) (\S+)\n", reader.said).groups()
    facts = json.loads((Path(folder) / "adapted.json").read_text())
    assert 0 <= float(value) <= 100 and facts["classes"] == ["cats", "dogs"] and str(facts["baselines"]) == baselines


def test_the_readme_of_a_checkpoint(read, small_hub):
    """Written from its card, and run like the others; PATH is its folder there."""
    path = small_hub / NAMED / "README.md"
    reader = read(path)
    reader.pictures = path.parent
    found = [text for language, text in blocks(path) if language == "python"]
    assert len(found) >= 2
    for text in found:
        reader.block("python", text)


@pytest.mark.parametrize(
    "line", ["conda install zoo", "zoo list | head", "pip install torch", "zoo list && zoo info simclr", "python -c 1"]
)
def test_a_line_that_nobody_knows_fails(line, tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match="nobody knows what to do with this line"):
        Reader(tmp_path, ROOT / "README.md", tmp_path, monkeypatch).line(line)


def test_a_block_that_fails_fails(tmp_path, monkeypatch, capsys):
    reader = Reader(tmp_path, ROOT / "README.md", tmp_path, monkeypatch)
    with pytest.raises(AssertionError):
        reader.block("bash", "zoo list tasks\nzoo info simclrr\n")
    assert "did you mean simclr?" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="a block of rust isn't run by anybody"):
        reader.block("rust", "fn main() {}")
    with pytest.raises(TypeError):
        reader.block("python", "import zoo\nzoo.load()\n")

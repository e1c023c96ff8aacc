"""Importing zoo changes nothing, its public names are there, and a wheel of it holds all it needs."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
import types
import zipfile
from pathlib import Path

import pytest

import zoo
from zoo.errors import ZooError

ROOT = Path(zoo.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(*words: str | Path, cwd: Path, **environment: str) -> str:
    """What a child process prints, run in `cwd` and in a bare environment: this process's own may hold what importing
    zoo has changed.
    """
    plain = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH") if key in os.environ}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=plain | environment,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


# ---- importing -----------------------------------------------------------------------------------

STATE = """
import atexit, locale, logging, os, random, signal, sys, threading, warnings

def state():
    root = logging.getLogger()
    return {"root logger": (root.level, list(root.handlers), list(root.filters)), "environment": dict(os.environ), "random": random.getstate(),
            "signals": {number: signal.getsignal(number) for number in signal.valid_signals()}, "folder": os.getcwd(), "path": list(sys.path),
            "streams": (sys.stdin, sys.stdout, sys.stderr), "threads": threading.enumerate(), "recursion": sys.getrecursionlimit(),
            "locale": locale.setlocale(locale.LC_ALL), "umask": os.umask(os.umask(0)), "hook": (sys.excepthook, threading.excepthook)}

def strict_state():
    return state() | {"warnings": (list(warnings.filters), warnings.showwarning), "import hooks": (list(sys.meta_path), list(sys.path_hooks)),
                      "atexit": atexit._ncallbacks()}

def check(before, after):
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, f"importing zoo changes {changed}"
"""  # noqa: E501

LIGHT = (
    STATE
    + """
before, modules = strict_state(), set(sys.modules)
import zoo
assert dir(zoo) == sorted(zoo.__all__)
zoo.ZooError, zoo.list_tasks, zoo.__version__
check(before, strict_state())
roots = {name.split(".")[0] for name in set(sys.modules) - modules} - set(sys.stdlib_module_names)
assert roots == {"zoo"}, f"importing zoo imports {roots}"
"""
)

HEAVY = (
    STATE
    + """
import lightning, matplotlib, numpy, sklearn.linear_model, timm, torch, torchvision     # what they do to the process is theirs

def all_state():
    return state() | {"numpy": repr(numpy.random.get_state()), "torch": torch.get_rng_state().tolist(), "torch's threads": torch.get_num_threads(),
                      "dtype": torch.get_default_dtype(), "device": torch.get_default_device(), "gradients": torch.is_grad_enabled(),
                      "deterministic": torch.are_deterministic_algorithms_enabled(), "precision": torch.get_float32_matmul_precision(),
                      "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic), "plots": matplotlib.get_backend()}

torch.set_num_threads(3)                            # on a machine of one core, 1 would look untouched
before = all_state()
import zoo.evaluate.knn                             # before anybody asks for zoo.evaluate, the function
names = {name: getattr(zoo, name) for name in reversed(zoo.__all__)}
assert all(value is not None for value in names.values()) and names["evaluate"].knn is zoo.evaluate.knn
check(before, all_state())
"""  # noqa: E501
)


@pytest.mark.parametrize("code", [LIGHT, HEAVY], ids=["zoo", "every name"])
def test_importing_changes_nothing_in_the_process(code, tmp_path):
    python("-c", code, cwd=tmp_path, ZOO_HOME=str(tmp_path / "home"), PYTHONPATH=str(ROOT))
    assert not list(tmp_path.iterdir()), "importing zoo wrote files"


@pytest.mark.parametrize("name", zoo.__all__)
def test_every_public_name_is_there(name):
    value = getattr(zoo, name)
    assert isinstance(value, str) if name == "__version__" else callable(value) and name in dir(zoo)


@pytest.mark.parametrize("verb", ["pretrain", "adapt", "evaluate", "report", "quickstart"])
def test_a_verb_is_a_module_and_can_be_called(verb):
    module = getattr(zoo, verb)
    assert (
        isinstance(module, types.ModuleType)
        and module is sys.modules[f"zoo.{verb}"]
        and module.__name__ == f"zoo.{verb}"
    )
    with pytest.raises(TypeError, match="missing .* required|unexpected keyword argument 'no_such_word'"):
        module(no_such_word=1)  # it reaches the function


def test_a_verb_does_what_its_function_does(tmp_path):
    with pytest.raises(ZooError, match="the recipe names no task"):
        zoo.pretrain({})
    with pytest.raises(ZooError, match="the recipe names no task"):
        zoo.pretrain.pretrain({}, out=tmp_path)


def test_a_name_that_is_not_there():
    assert not hasattr(zoo, "pretrian")
    with pytest.raises(AttributeError, match="module 'zoo' has no attribute 'pretrian'"):
        _ = zoo.pretrian


def test_the_version_is_one():
    assert zoo.__version__ == PROJECT["version"]


# ---- the wheel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what git knows or would add, so that building leaves nothing in the checkout."""
    known = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=False,
        capture_output=True,
    )
    if known.returncode:
        pytest.skip("not a checkout of git")
    copy = tmp_path_factory.mktemp("tree")
    for name in filter(None, known.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    quiet = ("--quiet", "--no-index", "--disable-pip-version-check")
    python("-m", "pip", "wheel", *quiet, "--no-deps", "--no-build-isolation", "-w", out, tree, cwd=out)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    python(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
        "--target",
        out,
        wheel,
        cwd=out,
    )
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Files by their path below `folder`."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_holds_the_package_the_recipes_and_the_hub_and_no_more(wheel, tree):
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    about = f"pretext_zoo-{PROJECT['version']}.dist-info/"
    wanted = {f"zoo/{name}": data for name, data in contents(tree / "zoo").items()}
    for kind in ("recipes", "hub"):
        wanted |= {f"zoo/_shipped/{kind}/{name}": data for name, data in contents(tree / kind).items()}
    assert {name: data for name, data in held.items() if not name.startswith(about)} == wanted
    assert any(name.startswith("zoo/_shipped/recipes/pretrain/") for name in held)
    assert {f"{about}METADATA", f"{about}licenses/LICENSE", f"{about}licenses/NOTICE"} <= held.keys()
    assert b"zoo = zoo.cli:main" in held[f"{about}entry_points.txt"]


def test_what_the_wheel_installs_works_without_the_checkout(site, tree, tmp_path):
    def command(*words: str):
        environment = {"PYTHONPATH": str(site), "ZOO_HOME": str(tmp_path / "home"), "ZOO_OFFLINE": "1"}
        return json.loads(python("-P", "-m", "zoo.cli", *words, "--json", cwd=tmp_path, **environment))

    where = python("-P", "-c", "import zoo; print(zoo.__file__)", cwd=tmp_path, PYTHONPATH=str(site)).strip()
    assert Path(where) == site / "zoo" / "__init__.py"
    everything = command("list")
    names = sorted(path.stem for path in (tree / "recipes" / "pretrain").glob("*.yaml"))
    assert (
        [row["name"] for row in everything["recipes"]]
        == [row["name"] for row in command("list", "recipes")]
        == names
        != []
    )
    assert (
        Path(command("info", names[0])["file"])
        == site / "zoo" / "_shipped" / "recipes" / "pretrain" / f"{names[0]}.yaml"
    )
    assert {task["name"] for task in everything["tasks"] if task["from"] == "zoo"} == {
        path.stem.replace("_", "-") for path in (tree / "zoo" / "tasks" / "image").glob("[!_]*.py")
    }

    index = tree / "hub" / "index.json"
    checkpoints = json.loads(index.read_text())["checkpoints"] if index.exists() else {}
    listed = command("list", "checkpoints")
    assert [row["name"] for row in listed] == sorted(checkpoints) and everything["checkpoints"] == listed
    for name in sorted(checkpoints)[:1]:  # found, and every file of it as its card says
        assert Path(command("pull", name)["folder"]).is_dir()
    assert command("verify") == {"problems": []}


def test_the_command_is_installed(site, tmp_path):
    script = site / "bin" / "zoo"
    assert script.is_file() and os.access(script, os.X_OK)
    assert python(script, "--version", cwd=tmp_path, PYTHONPATH=str(site)).strip() == PROJECT["version"]


def imports() -> dict[str, set[str]]:
    """Module of zoo -> the modules of zoo that it imports: at its top, in functions, under TYPE_CHECKING."""
    paths = [path for path in (ROOT / "zoo").rglob("*.py") if "_shipped" not in path.parts]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path} has a relative import, which this test does not follow"
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= {part if part in modules else str(node.module) for part in parts}
        found[module] = (named & set(modules)) - {module}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of the graph, its first node again at the end; empty if there is none."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := walk(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_modules_import_each_other_in_a_circle():
    found = imports()
    assert "zoo.checkpoint.read" in found["zoo.tasks.load"] and len(found) > 100
    assert circle(found) == []


def test_imports_go_down_the_list_of_folders_in_contributing():
    """A name of the list is a folder of zoo/ or a file beside the folders."""
    block = (ROOT / "CONTRIBUTING.md").read_text().partition("\n    cli\n")[2].partition("\n\n")[0]
    rows = ["cli", *(line.strip() for line in block.splitlines())]
    line_of = {name: number for number, row in enumerate(rows) for name in row.split()}
    graph = {module: others for module, others in imports().items() if module != "zoo"}  # zoo/__init__.py is above all
    assert {module.split(".")[1] for module in graph} == set(line_of)
    for module, others in graph.items():
        own = module.split(".")[1]
        for other in others - {"zoo"}:
            there = other.split(".")[1]
            assert there == own or line_of[there] > line_of[own], f"{module} imports {other}, which is not below it"

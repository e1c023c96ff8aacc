"""Names -> classes, without importing them.

Built-in tasks are found by reading the files of zoo/tasks/ for the decorator; tasks of other packages by the entry points in their
metadata (group `zoo.tasks`); backbones by reading timm's sources. Nothing here imports torch, timm or a plugin until one is asked for.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from zoo.errors import ZooError, nearest

GROUP = "zoo.tasks"
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_here: dict[str, type] = {}                         # registered in this process, by a script, a notebook or an import


@dataclass(frozen=True)
class TaskEntry:
    """A task as far as it is known without importing it. `problem` says why it can't be used, or is None."""

    name: str
    target: str                                     # package.module:Class
    origin: str                                     # "zoo", or "distribution version"
    summary: str = ""
    needs: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def uses_labels(self) -> bool:
        return "label" in self.needs


def register_task(name: str) -> Callable[[type], type]:
    """Class decorator that gives a pretext task its name and makes it known in this process.

    Raises ZooError when the name isn't lower-case words joined by hyphens, or belongs to another class. A class of the same
    module and name may be registered again, as happens when a notebook's cell is run twice.
    """
    if not NAME.fullmatch(name):
        raise ZooError(f"{name!r} can't name a task; use lower-case letters, digits and hyphens")

    def register(task: type) -> type:
        target = f"{task.__module__}:{task.__qualname__}"
        for known in [_target(_here[name])] if name in _here else [entry.target for entry in _declared() if entry.name == name]:
            if known != target:
                raise ZooError(f"the task name {name!r} is taken by {known}; choose another for {target}")
        task.name = name
        _here[name] = task
        return task

    return register


def list_tasks() -> list[TaskEntry]:
    """Every task that is built in, installed or registered in this process, by name; importing none."""
    entries = {entry.name: entry for entry in _declared()}
    for name, task in _here.items():
        if name not in entries:
            summary = (task.__doc__ or "").strip().split("\n")[0]
            entries[name] = TaskEntry(name, _target(task), "this session", summary, tuple(getattr(task, "needs", ())))
    return [entries[name] for name in sorted(entries)]


def find_task(name: str) -> type:
    """The class of a task; imports its one file. Raises ZooError for an unknown or broken one, naming the distribution."""
    if name in _here:
        return _here[name]
    entries = {entry.name: entry for entry in _declared()}
    if name not in entries:
        raise ZooError(f"{name!r} is not a task{nearest(name, [entry.name for entry in list_tasks()])}")
    entry = entries[name]
    if entry.problem:
        raise ZooError(f"the task {name} can't be used: {entry.problem}")
    module, _, attribute = entry.target.partition(":")
    try:
        task = getattr(importlib.import_module(module), attribute)
    except BaseException as error:                  # a plugin may raise anything, SystemExit included
        if isinstance(error, KeyboardInterrupt) or entry.origin == "zoo":
            raise
        raise ZooError(f"the task {name} of {entry.origin} can't be imported: {type(error).__name__}: {error}") from error
    if getattr(task, "name", None) != name:
        raise ZooError(f"{entry.target} of {entry.origin} is listed as {name!r} but registers itself as {getattr(task, 'name', None)!r}; "
                       "its entry point and its decorator have to agree")
    return task


def check_tasks(timeout: float = 60) -> list[TaskEntry]:
    """Import every listed task in a process of its own and say what became of it, in `problem`."""

    def check(entry: TaskEntry) -> TaskEntry:
        if entry.problem or entry.origin == "this session":
            return entry
        code = f"from zoo.registry import find_task; find_task({entry.name!r}); print('imported')"
        try:
            child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return replace(entry, problem=f"{entry.origin}: importing it took more than {timeout:g} seconds")
        if child.returncode == 0 and child.stdout.strip().endswith("imported"):
            return entry
        last = (child.stderr.strip().splitlines() or [f"it ended the process with exit code {child.returncode}"])[-1]
        return replace(entry, problem=f"{entry.origin}: {last.removeprefix('zoo.errors.ZooError: ')}")

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(check, list_tasks()))


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of timm's models that match a shell pattern, as `timm.list_models()` gives them, read from timm's sources."""
    return fnmatch.filter(_timm_models(), pattern)


# ---- how they are found ------------------------------------------------------------------------------------------------

def _target(task: type) -> str:
    return f"{task.__module__}:{task.__qualname__}"


def _declared() -> list[TaskEntry]:
    return _built_in() + _installed()


@functools.cache
def _built_in() -> list[TaskEntry]:
    entries = []
    for path in sorted((Path(__file__).parent / "tasks").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        summary = (ast.get_docstring(tree) or "").split("\n")[0]
        for node in tree.body:
            name = _decorated(node)
            if name is not None:
                entries.append(TaskEntry(name, f"zoo.tasks.{path.stem}:{node.name}", "zoo", summary, _needs(node)))
    return entries


def _decorated(node: ast.AST) -> str | None:
    for decorator in getattr(node, "decorator_list", []) if isinstance(node, ast.ClassDef) else []:
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "register_task" and decorator.args:
            return ast.literal_eval(decorator.args[0])
    return None


def _needs(node: ast.ClassDef) -> tuple[str, ...]:
    for line in node.body:
        if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "needs":
            return tuple(ast.literal_eval(line.value))
    return ("image",)


def _installed() -> list[TaskEntry]:
    """Entry points, with what their metadata alone shows to be wrong."""
    if os.environ.get("ZOO_NO_PLUGINS"):
        return []
    found: dict[str, list[TaskEntry]] = {}
    for point in metadata.entry_points(group=GROUP):
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
        entry = TaskEntry(point.name, point.value, origin, problem=_fault(point))
        if entry.target not in [other.target for other in found.get(point.name, [])]:      # one package seen twice on the path
            found.setdefault(point.name, []).append(entry)
    built_in = {entry.name for entry in _built_in()}
    entries = []
    for name, claims in found.items():
        entry = claims[0]
        if len(claims) > 1:
            who = " and ".join(claim.origin for claim in claims)
            entry = replace(entry, origin=who, problem=f"{who} both claim the name; uninstall one")
        elif name in built_in:
            continue                                # a built-in can't be shadowed; shadowed() tells of it
        entries.append(entry)
    return entries


def shadowed() -> list[str]:
    """Sentences about installed tasks that claim a built-in's name, and so are not listed."""
    if os.environ.get("ZOO_NO_PLUGINS"):
        return []
    built_in = {entry.name for entry in _built_in()}
    return [f"{point.dist.name} {point.dist.version} also has a task {point.name!r}; the built-in one is used"
            for point in metadata.entry_points(group=GROUP) if point.name in built_in and point.dist]


def _fault(point: metadata.EntryPoint) -> str | None:
    if not NAME.fullmatch(point.name):
        return f"{point.name!r} can't name a task"
    if not re.fullmatch(r"[\w.]+:[\w.]+", point.value):
        return f"its entry point {point.value!r} is not package.module:Class"
    return None


@functools.cache
def _timm_models() -> list[str]:
    spec = importlib.util.find_spec("timm")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    pattern = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)
    names = {name for path in folder.glob("*.py") for name in pattern.findall(path.read_text(encoding="utf-8"))}
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())])

"""Names -> classes, without importing them.

Built-in tasks are found by reading the files of zoo/tasks/ for the decorator; tasks of other packages by the entry
points in their metadata (group `zoo.tasks`); backbones by reading timm's sources. Nothing here imports torch, timm or a
plugin until one is asked for.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, because, nearest
from zoo.outline import outline

GROUP = "zoo.tasks"
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
IMPORTED = "imported"  # stands in a card for the task that zoo import doesn't know; never listed
SECRET = re.compile(r"(^|[_.-])(token|secret|password|passwd|api[_-]?key|credentials?)$", re.IGNORECASE)
_here: dict[str, type] = {}  # registered in this process, by a script, a notebook or an import


@dataclass(frozen=True)
class TaskEntry:
    """A task as far as it is known without importing it. `problem` says why it can't be used, or is None."""

    name: str
    target: str  # package.module:Class
    origin: str  # "zoo", "distribution version", or "this session"
    summary: str = ""  # first line of its docstring, or its distribution's summary
    needs: tuple[str, ...] = ()
    problem: str | None = None
    towers: tuple[tuple[str, str], ...] = (("backbone", "image"),)  # argument of the constructor, kind that it reads
    text: str = ""  # the rest of a built-in task's docstring: figure, papers, departures from them

    @property
    def uses_labels(self) -> bool:
        return "label" in self.needs


def register_task(name: str) -> Callable[[type], type]:
    """Class decorator that gives a pretext task its name and makes it known in this process.

    Raises ZooError when the name isn't lower-case words joined by hyphens, when what it decorates is no PretextTask,
    when the name belongs to another class, and when an argument is called as secrets are, since arguments are published
    in cards. A class of the same module and name may be registered again and takes the old one's place, so that a
    notebook's cell can be run twice and a module reloaded.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ZooError(
            f'{name!r} can\'t name a task; write @register_task("my-task"), in lower-case letters, digits and hyphens'
        )

    def register(task: type) -> type:
        target = _target(task) if isinstance(task, type) else repr(task)
        _check_class(name, task, target)
        for owner in _owners(name):
            if not _same(owner, target):
                raise ZooError(f"the task name {name!r} is taken by {owner}; choose another for {target}")
        task.name = name
        _here[name] = task
        return task

    return register


def _check_class(name: str, task: Any, target: str) -> None:
    """Raises ZooError unless `task` is a pretext task whose arguments may be published in recipes and cards."""
    if not isinstance(task, type) or not getattr(task, "is_pretext_task", False):
        raise ZooError(f"{target} can't be registered as the task {name!r}: it doesn't inherit from zoo.PretextTask")
    for argument, parameter in inspect.signature(task.__init__).parameters.items():
        if SECRET.search(argument) and parameter.annotation not in (bool, "bool"):  # as a ViT's class_token
            raise ZooError(
                f"the task {name!r} has an argument {argument}, and what looks like a secret would be published in "
                "recipes and cards; have the task read it from the environment instead, or give it another name"
            )


def _owners(name: str) -> list[str]:
    """The targets that have a right to a name: the registered class, or else what is declared."""
    if name == IMPORTED:
        return ["zoo.tasks.imported:Imported"]
    return [_target(_here[name])] if name in _here else [entry.target for entry in _declared() if entry.name == name]


def _same(owner: str, target: str) -> bool:
    """Whether two targets are one class: an entry point may name it where its package re-exports it."""
    (module, _, attribute), (other, _, name) = owner.partition(":"), target.partition(":")
    return owner == target or (
        module.split(".")[0] == other.split(".")[0] not in ("zoo", "__main__") and attribute == name
    )


def list_tasks() -> list[TaskEntry]:
    """Every task that is built in, installed or registered in this process, by name; importing none."""
    entries = {entry.name: entry for entry in _declared()}
    for name, task in _here.items():
        if name not in entries:
            summary = (task.__doc__ or "").strip().split("\n")[0]
            towers = tuple(task.towers.items())
            entries[name] = TaskEntry(name, _target(task), "this session", summary, tuple(task.needs), towers=towers)
    return [entries[name] for name in sorted(entries)]


def find_task(name: str) -> type:
    """The class of a task; imports its one file. Raises ZooError for an unknown or broken task."""
    if name == IMPORTED:
        return importlib.import_module("zoo.tasks.imported").Imported
    entry = task_entry(name)
    if name in _here and not entry.problem:
        return _here[name]
    if entry.problem:
        raise ZooError(f"the task {name} can't be used: {entry.problem}")
    return _load(entry)


def task_entry(name: str) -> TaskEntry:
    """What is known of a task without importing it. Raises ZooError for an unknown one."""
    entries = {entry.name: entry for entry in list_tasks()}
    if name not in entries:
        raise ZooError(f"{name!r} is not a task{nearest(name, entries)}")
    return entries[name]


def _load(entry: TaskEntry) -> type:
    """Import a task. Raises ZooError, naming the distribution, whatever a plugin raises."""
    name = entry.name
    module, _, attribute = entry.target.partition(":")
    before = dict(_here)
    try:
        task = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        _here.clear(), _here.update(before)  # what half of a module has registered is of no use
        if isinstance(error, KeyboardInterrupt) or entry.origin == "zoo":
            raise
        raise ZooError(
            f"the task {name} of {entry.origin} can't be imported: {type(error).__name__}: {error}"
        ) from error
    if _here.get(name) is not task:  # an entry point alone registers, under the name that it gives
        try:
            _check_class(name, task, entry.target)
        except ZooError as error:
            raise ZooError(f"the task {name} of {entry.origin} can't be used: {error}") from None
        if task.name not in ("", name):
            raise ZooError(
                f"the task {name} of {entry.origin} can't be used: {entry.target} is registered as {task.name!r}; give "
                "the entry point and the decorator the same name"
            )
        task.name = name
        _here[name] = task
    return task


def task_arguments(name: str) -> dict[str, str]:
    """A task's arguments and their defaults, as written in Python. A built-in task is read, any other imported. Raises
    ZooError.
    """
    task = task_outline(name)
    parameters = list(inspect.signature(task.__init__).parameters.values())[1:]
    towers = getattr(task, "towers", ("backbone",))
    return {p.name: "" if p.default is p.empty else repr(p.default) for p in parameters if p.name not in towers}


def task_outline(name: str) -> type:
    """What tells a task's arguments: of a built-in one the outline, which needs no torch, of any other the class
    itself. Raises ZooError.
    """
    if name == IMPORTED or (entry := task_entry(name)).origin != "zoo":
        return find_task(name)
    module, _, attribute = entry.target.partition(":")
    return outline(Path(__file__).parent / f"{module.removeprefix('zoo.').replace('.', '/')}.py", attribute)


# ---- how they are found --------------------------------------------------------------------------


def _target(task: type) -> str:
    return f"{task.__module__}:{task.__qualname__}"


def _declared() -> list[TaskEntry]:
    return _built_in() + _installed()


def _module_of(path: Path) -> str:
    return ".".join(("zoo", *path.relative_to(Path(__file__).parent).with_suffix("").parts))


@functools.cache
def _built_in() -> list[TaskEntry]:
    entries = []
    for path in sorted((Path(__file__).parent / "tasks").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        summary, _, text = (ast.get_docstring(tree) or "").partition("\n")
        for node in tree.body:
            name = _decorated(node)
            if name is not None:
                entries.append(
                    TaskEntry(
                        name,
                        f"{_module_of(path)}:{node.name}",
                        "zoo",
                        summary,
                        tuple(_said(node, "needs", ("image",))),
                        towers=tuple(_said(node, "towers", {"backbone": "image"}).items()),
                        text=text.strip("\n"),
                    )
                )
    return entries


def _decorated(node: ast.AST) -> str | None:
    for decorator in getattr(node, "decorator_list", []) if isinstance(node, ast.ClassDef) else []:
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "register_task" and decorator.args:
            return ast.literal_eval(decorator.args[0])
    return None


def _said(node: ast.ClassDef, name: str, default: Any) -> Any:
    """The plain value of a class attribute, with an annotation or without."""
    for line in node.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if getattr(target, "id", "") == name:
            return ast.literal_eval(line.value)
    return default


def _points() -> Iterator[tuple[str, str, metadata.EntryPoint | None]]:
    """(distribution and version, its summary, entry point) of every installed task; None where the entry points can't
    be read.

    Not metadata.entry_points(): one damaged file of any distribution makes that raise for all.
    """
    if os.environ.get("ZOO_NO_PLUGINS"):
        return
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            if GROUP not in (distribution.read_text("entry_points.txt") or ""):
                continue
            about, points = distribution.metadata, distribution.entry_points
            name, version = about.get("Name"), about.get("Version")
            if not (name and version):
                raise ValueError("it lacks its name or version")
        except Exception as error:
            where = getattr(distribution, "_path", "a distribution")
            yield f"{where}, whose metadata can't be read ({because(error)})", "", None
            continue
        known_as = re.sub(r"[-_.]+", "-", name).lower()
        if known_as not in seen:  # of one that is on the path twice, the first is what an import finds
            seen.add(known_as)
            yield from (
                (f"{name} {version}", about.get("Summary", ""), point) for point in points if point.group == GROUP
            )


def _installed() -> list[TaskEntry]:
    """Entry points, with what their metadata alone shows to be wrong."""
    claims: dict[str, list[TaskEntry]] = {}
    for origin, summary, point in _points():
        if point is not None:
            claims.setdefault(point.name, []).append(
                TaskEntry(point.name, point.value, origin, summary, problem=_fault(point, origin))
            )
    for entry in _built_in():  # which can't be shadowed; notices() tells of those who try
        claims.pop(entry.name, None)
    entries = []
    for claimants in claims.values():
        who = " and ".join(entry.origin for entry in claimants)
        clash = f"{who} both claim the name; uninstall one" if len(claimants) > 1 else claimants[0].problem
        entries.append(replace(claimants[0], origin=who, problem=clash))
    return entries


def notices() -> list[str]:
    """Sentences about installed tasks that aren't listed: they claim a built-in's name, or their metadata can't be
    read.
    """
    built_in = {entry.name for entry in _built_in()}
    return [
        f"{origin} is left out"
        if point is None
        else f"{origin} also has a task {point.name!r}; the built-in one is used"
        for origin, _, point in _points()
        if point is None or point.name in built_in
    ]


@contextlib.contextmanager
def naming_damage() -> Iterator[None]:
    """torch and Lightning read the entry points of every package, and one damaged file makes them raise: here a
    ZooError that names the package.
    """
    try:
        yield
    except Exception as error:
        if not any(
            frame.f_globals.get("__name__", "").startswith("importlib.metadata")
            for frame, _ in traceback.walk_tb(error.__traceback__)
        ):
            raise
        damaged = []
        for distribution in metadata.distributions():
            try:
                list(distribution.entry_points)
            except Exception as fault:
                damaged.append(f"{getattr(distribution, '_path', 'a package')} ({because(fault)})")
        if not damaged:
            raise
        raise ZooError(
            f"torch can't be used while the metadata of {' and '.join(damaged)} can't be read; uninstall or reinstall "
            "that package"
        ) from error


def _fault(point: metadata.EntryPoint, origin: str) -> str | None:
    if not NAME.fullmatch(point.name):
        return f"{origin} calls it {point.name!r}; a task's name is lower-case words joined by hyphens"
    if not re.fullmatch(r"[\w.]+:[\w.]+", point.value):
        return f"its entry point in {origin}, {point.value!r}, is not package.module:Class"
    module = point.value.partition(":")[0].split(".")[0]
    with contextlib.suppress(ImportError, ValueError):  # of import hooks: not for us to judge before it is imported
        if importlib.util.find_spec(module) is None:
            return f"{origin} has no package {module!r}, which its entry point names"
    return None

"""Names -> classes, without importing them.

Built-in tasks are found by reading the files of zoo/tasks/ for the decorator; tasks of other packages by the entry
points in their metadata (group `zoo.tasks`, see zoo/plugins.py). An entry point alone registers a class, under the name
that it gives; the decorator is for built-in tasks, notebooks and scripts. Nothing here imports torch or a plugin until
one is asked for.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import plugins
from zoo.errors import ZooError, nearest
from zoo.outline import outline

NAME = plugins.NAMES[plugins.TASKS]
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


def declared_name(task: type) -> str | None:
    """The name that an installed package's entry point gives to a class; None where there is none."""
    target = _target(task)
    return next((entry.name for entry in _installed() if not entry.problem and _same(entry.target, target)), None)


def task_entry(name: str) -> TaskEntry:
    """What is known of a task without importing it. Raises ZooError for an unknown one."""
    entries = {entry.name: entry for entry in list_tasks()}
    if name not in entries:
        raise ZooError(f"{name!r} is not a task{nearest(name, entries)}")
    return entries[name]


def _load(entry: TaskEntry) -> type:
    """Import a task. Raises ZooError, naming the distribution, whatever a plugin raises."""
    if entry.origin == "zoo":
        module, _, attribute = entry.target.partition(":")
        return getattr(importlib.import_module(module), attribute)
    plugin = plugins.Plugin(plugins.TASKS, entry.name, entry.target, entry.origin)
    before = dict(_here)
    try:
        task = plugins.load(plugin)
        if _here.get(entry.name) is not task:
            _register_by_entry_point(plugin, task)
        return task
    except BaseException:
        _here.clear(), _here.update(before)  # what a broken module has registered is of no use
        raise


def _register_by_entry_point(plugin: plugins.Plugin, task: Any) -> None:
    """Register a class under the name that its entry point gives. Raises ZooError, naming the distribution."""
    try:
        _check_class(plugin.name, task, plugin.target)
    except ZooError as error:
        raise plugins.unfit(plugin, str(error)) from None
    if task.name not in ("", plugin.name):
        raise plugins.unfit(
            plugin,
            f"{plugin.target} is registered as {task.name!r}; give the entry point and the decorator the same name",
        )
    task.name = plugin.name
    _here[plugin.name] = task


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


def _installed() -> list[TaskEntry]:
    """Tasks of other packages, as far as their metadata shows."""
    return [
        TaskEntry(plugin.name, plugin.target, plugin.origin, plugin.summary, problem=plugin.problem)
        for plugin in plugins.installed(plugins.TASKS, _reserved())
    ]


def notices() -> list[str]:
    """Sentences about installed tasks that aren't listed: they claim a built-in's name, or their metadata can't be
    read.
    """
    return plugins.notices(plugins.TASKS, _reserved())


def _reserved() -> set[str]:
    return {IMPORTED, *(entry.name for entry in _built_in())}

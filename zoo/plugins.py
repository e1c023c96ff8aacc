"""What other packages add to the zoo, found by the entry points in their metadata.

Three groups of entry points are read: tasks, data sets and backbones. Listing them imports no plugin; a plugin is
imported when somebody names it. What is broken is named with its distribution, and everything else goes on working.
Importing this imports no torch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import re
import traceback
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from zoo.errors import ZooError, because

TASKS, DATA, BACKBONES = "zoo.tasks", "zoo.data", "zoo.backbones"
WORDS = {TASKS: "task", DATA: "data set", BACKBONES: "backbone"}
NAMES = {
    TASKS: re.compile(r"[a-z0-9][a-z0-9-]*"),
    DATA: re.compile(r"[a-z0-9][a-z0-9-]*"),
    BACKBONES: re.compile(r"[a-z0-9][a-z0-9_-]*"),  # names of timm's models have underscores
}
SHAPES = {TASKS: "package.module:Class", DATA: "package.module:thing", BACKBONES: "package.module:function"}


@dataclass(frozen=True)
class Plugin:
    """An entry point as far as it is known without importing it. `problem` says why it can't be used, or is None."""

    group: str
    name: str
    target: str  # package.module:thing
    origin: str  # distribution and version
    summary: str = ""  # of the distribution
    problem: str | None = None

    @property
    def who(self) -> str:
        """How a sentence names it."""
        return f"the {WORDS[self.group]} {self.name} of {self.origin}"


def installed(group: str, built_in: Collection[str]) -> list[Plugin]:
    """Entry points of a group, by name, with what their metadata alone shows to be wrong.

    A name of `built_in` can't be claimed: such an entry point is left out, and `notices` names it. A name with two
    claimants is listed once, with a problem that names both.
    """
    claims: dict[str, list[Plugin]] = {}
    for origin, summary, point in _points(group):
        if point is not None and point.name not in built_in:
            found = Plugin(group, point.name, point.value, origin, summary, _fault(group, point, origin))
            claims.setdefault(point.name, []).append(found)
    out = []
    for name in sorted(claims):
        first, *others = claims[name]
        who = " and ".join(plugin.origin for plugin in (first, *others))
        clash = f"{who} both claim the name; uninstall one" if others else first.problem
        out.append(replace(first, origin=who, problem=clash))
    return out


def notices(group: str, built_in: Collection[str]) -> list[str]:
    """Sentences about entry points that aren't listed: they claim a built-in's name, or their metadata can't be
    read.
    """
    word = WORDS[group]
    return [
        f"{origin} is left out"
        if point is None
        else f"{origin} also has a {word} {point.name!r}; the built-in one is used"
        for origin, _, point in _points(group)
        if point is None or point.name in built_in
    ]


def load(plugin: Plugin) -> Any:
    """What an entry point names, imported. Raises ZooError with the distribution's name, whatever the plugin
    raises.
    """
    if plugin.problem:
        raise ZooError(f"the {WORDS[plugin.group]} {plugin.name} can't be used: {plugin.problem}")
    module, _, attribute = plugin.target.partition(":")
    with blaming(plugin, "can't be imported"), naming_damage():
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))


@contextlib.contextmanager
def blaming(plugin: Plugin, what: str) -> Iterator[None]:
    """Whatever a plugin raises, SystemExit included, becomes a ZooError that names its distribution and says what can't
    be done. An interruption stays one.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        said = str(error) if isinstance(error, ZooError) else because(error)
        raise ZooError(f"{plugin.who} {what}: {said}") from error


def unfit(plugin: Plugin, why: str) -> ZooError:
    """The refusal of a plugin that could be imported and isn't what its group holds."""
    return ZooError(f"{plugin.who} can't be used: {why}")


# ---- metadata ------------------------------------------------------------------------------------


def _points(group: str) -> Iterator[tuple[str, str, metadata.EntryPoint | None]]:
    """(distribution and version, its summary, entry point) of every entry point of a group; None in place of the entry
    point where they can't be read.

    metadata.entry_points() isn't used, because one damaged file of any distribution makes it raise for all.
    """
    if os.environ.get("ZOO_NO_PLUGINS"):
        return
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            if group not in (distribution.read_text("entry_points.txt") or ""):
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
        if known_as not in seen:  # of a distribution that is on the path twice, an import finds the first
            seen.add(known_as)
            yield from (
                (f"{name} {version}", about.get("Summary", ""), point) for point in points if point.group == group
            )


def _fault(group: str, point: metadata.EntryPoint, origin: str) -> str | None:
    """What is wrong with an entry point, as far as that shows without importing it."""
    if not NAMES[group].fullmatch(point.name):
        return f"{origin} calls it {point.name!r}; a {WORDS[group]}'s name is lower-case words joined by hyphens"
    if not re.fullmatch(r"[\w.]+:[\w.]+", point.value):
        return f"its entry point in {origin}, {point.value!r}, is not {SHAPES[group]}"
    module = point.value.partition(":")[0].split(".")[0]
    with contextlib.suppress(ImportError, ValueError):  # an import hook may raise; importing the module will show it
        if importlib.util.find_spec(module) is None:
            return f"{origin} has no package {module!r}, which its entry point names"
    return None


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

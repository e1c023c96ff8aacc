"""Recipes: read, override, check, resolve, save. A recipe is data (names and plain values, never an import path), safe
to take from a stranger.

jsonargparse serves as a type checker behind our own reader: it never sees the command line, and no file name reaches
it.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import ZooError, nearest
from zoo.paths import expanded, shipped, write_text
from zoo.registry import SECRET, task_outline

ORDER = ("seed", "data", "backbone", "task", "optim", "trainer")
LARGEST, DEEPEST = 64 * 1024, 8  # bytes of a recipe; levels of nesting
RESERVED = {
    "name": "in a recipe the name of the task",
    "seed": "the seed of a whole run",
    "optim": "the group of the optimizer",
}
OPEN = "backbone."  # keywords of a network, which are checked when the network is built


# ---- reading -------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML without aliases, tags and duplicate keys."""

    yaml_implicit_resolvers: dict = {}  # filled below
    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise ZooError(f"line {event.start_mark.line + 1}: a recipe can't use YAML aliases (*name)")
        if getattr(event, "tag", None):
            raise ZooError(f"line {event.start_mark.line + 1}: a recipe can't use YAML tags ({event.tag})")
        self.depth += 1
        if self.depth > DEEPEST:
            raise ZooError(f"line {event.start_mark.line + 1}: a recipe is nested at most {DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        seen: set = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ZooError(f"line {key.start_mark.line + 1}: {key.value} is given twice")
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every word that YAML 1.1 or `_Loader` would read as something else, such as 1e3."""


# YAML 1.2's plain words. Those of 1.1 read 1e-3 as a word, no as false, 010 as eight, 1:30 as ninety and 2024-01-01 as
# a date.
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    # no two ways to match one text, or a word of 60,000 digits takes minutes
    (
        "float",
        r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _way in (_Loader, _Dumper):
        _way.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)


def read(recipe: str | Path) -> dict:
    """The recipe in a file, or the one that came with the zoo under that name. Raises ZooError."""
    path = find(recipe)
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        _check_size(len(data), str(path))
        return parse(data.decode("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"{path} can't be read as a recipe: {error}") from error


def find(recipe: str | Path) -> Path:
    """The file of a recipe, given as a path or by name."""
    path = expanded(recipe)
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise ZooError(f"{path} is a folder; a recipe is a YAML file")
    except OSError as error:  # a name that is too long, a folder that can't be entered
        raise ZooError(f"{str(recipe)[:80]!r} can't be read as a recipe: {error.strerror}") from error
    known = {name: file for name, file, _ in list_recipes()}
    name = str(recipe).removesuffix(".yaml")
    if name not in known:
        raise ZooError(
            f"there is no recipe {str(recipe)!r}, neither as a file nor among those that came with the "
            f"zoo{nearest(name, known)}"
        )
    return known[name]


def list_recipes() -> list[tuple[str, Path, str]]:
    """(name, file, first line of its header) of the pretraining recipes that came with the zoo."""
    folder = shipped("recipes")
    if folder is None:
        return []
    return [
        (path.stem, path, path.read_text(encoding="utf-8").split("\n")[0].lstrip("# "))
        for path in sorted((folder / "pretrain").glob("*.yaml"))
    ]


def parse(text: str, where: str) -> dict:
    """YAML text -> nested dict with words as keys. Raises ZooError; no text makes it raise anything else, or run
    anything.
    """
    _check_size(len(text), where)
    try:
        out = yaml.load(text, _Loader)  # a SafeLoader
    except ZooError as error:
        raise ZooError(f"{where}, {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise ZooError(f"{where} is not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(out, dict) or not all(isinstance(key, str) for key in out):
        raise ZooError(f"{where} is no recipe: it has to be a mapping of groups such as data, backbone and task")
    return out


def _check_size(size: int, where: str) -> None:
    if size > LARGEST:
        raise ZooError(f"{where} is larger than {LARGEST // 1024} KiB, so it is no recipe")


def overrides(words: list[str]) -> dict[str, Any]:
    """Command-line words `--group.key VALUE` or `--group.key=VALUE` -> {"group.key": value}.

    Words stay words, since the key's type decides; only lists and timm's keywords, whose types we don't know, are read
    as YAML.
    """
    out, rest = {}, iter(words)
    for word in rest:
        if not word.startswith("--"):
            raise ZooError(f"{word!r} is not an option; recipe keys are written --group.key VALUE")
        key, given, value = word[2:].partition("=")
        if key in out:
            raise ZooError(f"--{key} is given twice")
        if not given:
            value = next(rest, None)
            if value is None:
                raise ZooError(f"--{key} lacks its value")
        if (key.startswith(OPEN) and not key.endswith(".name")) or value[:1] == "[":
            value = parse(f"value: {value}", f"--{key}")["value"]
        out[key] = value
    return out


def flat(recipe: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("group.key", value) pairs of a nested recipe; an empty group is a pair of its own."""
    for key, value in recipe.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# ---- checking ------------------------------------------------------------------------------------


def groups() -> dict[str, Callable]:
    """The functions and classes whose signatures are the schema of the groups beside task and backbone; outlines of
    them, since a recipe's help needs no torch."""
    from zoo.outline import outline

    here = Path(__file__).parent
    return {
        "data": outline(here / "data" / "module.py", "create_data"),
        "optim": outline(here / "optim.py", "Optim"),
        "trainer": outline(here / "train" / "settings.py", "Training"),
    }


def parser(task: type, schema: dict[str, Callable]):
    """A jsonargparse parser with exactly the keys of a recipe of this task. Raises ZooError for a task that a recipe
    can't describe.
    """
    from jsonargparse import ArgumentParser

    check_signature(task)
    out = ArgumentParser(exit_on_error=False, default_env=False, add_help=False)
    out.add_argument("--seed", type=int, default=0, help="the number from which all randomness follows")
    for prefix in tower_prefixes(task):
        out.add_argument(f"--{prefix}name", type=str, required=True, help="a network; see zoo list backbones")
    out.add_argument("--task.name", type=str, required=True, help="a pretext task; see zoo list tasks")
    out.add_class_arguments(task, "task", skip=set(towers_of(task)))
    for name, signature in schema.items():
        add = out.add_class_arguments if inspect.isclass(signature) else out.add_function_arguments
        add(signature, name)
    return out


def towers_of(task: type) -> dict[str, str]:
    """The backbones of a task: argument of its constructor -> the kind that the backbone reads."""
    return getattr(task, "towers", {"backbone": "image"})


def tower_prefixes(task: type) -> dict[str, str]:
    """What the keys of each tower's keywords begin with in a recipe -> the tower."""
    towers = list(towers_of(task))
    return {OPEN: "backbone"} if towers == ["backbone"] else {f"{OPEN}{tower}.": tower for tower in towers}


def check_signature(task: type) -> None:
    """A recipe holds plain values, so a task's arguments are plain: int, float, bool, str, Literal, None, and lists and
    unions of these.

    Anything else is refused here with a ZooError. It would be a way for a recipe to name code: jsonargparse imports
    what a Callable or a class is said to be.
    """
    who = f"the task {getattr(task, 'name', '') or task.__name__}"
    try:
        hints = typing.get_type_hints(task.__init__)
    except (NameError, AttributeError, TypeError) as error:
        raise ZooError(f"{who} has an annotation in __init__ that can't be read: {error}") from error
    for name, parameter in list(inspect.signature(task.__init__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ZooError(
                f"{who} takes {str(parameter).split(':')[0]}; its arguments have to be written out, so that a "
                "recipe's can be checked"
            )
        if name in RESERVED:
            raise ZooError(f"{who} has an argument called {name}, which is {RESERVED[name]}; call it something else")
        if name in towers_of(task):
            continue
        if name not in hints:
            raise ZooError(f"{who} doesn't say what type its argument {name} has")
        if not _is_plain(hints[name]):
            raise ZooError(
                f"{who} has an argument {name} of type {hints[name]}; a recipe holds int, float, bool, str, Literal "
                "and lists of these"
            )


def _is_plain(kind: Any) -> bool:
    if typing.get_origin(kind) in (list, tuple, typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(kind) if part is not ...]
        return bool(parts) and all(map(_is_plain, parts))  # typing.List alone is a list of anything
    return kind in (int, float, bool, str, types.NoneType) or typing.get_origin(kind) is typing.Literal


def keys(values: dict[str, Any], schema: dict[str, Callable] | None = None) -> list[dict]:
    """What a recipe with these (dotted) values may say, in a recipe's order: {key, type, default, required, value,
    about} each.
    """
    check = parser(_task(values), schema or groups())
    defaults = dict(flat(check.get_defaults().as_dict()))
    rows = []
    for action in (action for action in check._actions if action.dest in defaults):
        kind = getattr(action, "_typehint", None) or action.type
        about = " ".join((action.help or "").replace("%%", "%").split())
        rows.append(
            {
                "key": action.dest,
                "type": _type_name(kind),
                "default": defaults[action.dest],
                "required": bool(getattr(action, "required", False)),
                "value": values.get(action.dest),
                "about": about,
            }
        )
    rows += [
        {
            "key": key,
            "type": "",
            "default": None,
            "required": False,
            "value": value,
            "about": "a keyword of the network",
        }
        for key, value in values.items()
        if key.startswith(OPEN) and key not in defaults
    ]
    return sorted(rows, key=lambda row: ORDER.index(row["key"].split(".")[0]))


def _task(values: dict[str, Any]) -> type:
    name = values.get("task.name")
    if not isinstance(name, str):
        raise ZooError("the recipe names no task; write task: {name: ...}, with a name from zoo list tasks")
    return task_outline(name)


def resolve(recipe: dict, changes: dict[str, Any] | None = None, schema: dict[str, Callable] | None = None) -> dict:
    """The recipe with `changes` laid over it and every default written out; a fixed point of itself.

    Raises ZooError for an unknown key (with the nearest), an empty or non-finite value, a wrong type, and a missing
    key.
    """
    from jsonargparse import ArgumentError

    values: dict[str, Any] = {}
    for key, value in flat(recipe):
        if key in values:  # as a group and, dotted, at the top
            raise ZooError(f"{key} is given twice")
        values[key] = value
    values |= changes or {}
    for key in [
        key for key, value in (changes or {}).items() if value is None and key.startswith(OPEN)
    ]:  # a keyword that another backbone lacks
        del values[key]
    task = _task(values)
    prefixes, check = tower_prefixes(task), parser(task, schema or groups())
    defaults = dict(flat(check.get_defaults().as_dict()))
    known = {key.split(".")[0] for key in defaults if "." in key}
    values = {
        key: value for key, value in values.items() if key not in known or not isinstance(value, (dict, types.NoneType))
    }  # an empty group
    for action in check._actions:  # 32 without quotes, where the choice is between words
        kind, value = getattr(action, "_typehint", None), values.get(action.dest)
        if (
            type(value) is int
            and typing.get_origin(kind) is typing.Literal
            and all(isinstance(word, str) for word in typing.get_args(kind))
        ):
            values[action.dest] = str(value)
    for key, value in values.items():
        _check_key(key, defaults, prefixes)
        _check_value(key, value, defaults)
    networks = {key: value for key, value in values.items() if key.startswith(OPEN)}
    typed_here = {key: value for key, value in values.items() if key not in networks or key in defaults}
    try:
        typed = check.parse_object(_nested(typed_here))
    except ArgumentError as error:
        raise ZooError(_sentence(str(error))) from None
    out = typed.as_dict() | {"backbone": _nested(networks).get("backbone", {})}
    for key, value in flat(out):
        _check_plain(key, value)
    return {key: _ordered(out[key]) for key in ORDER if key in out}


def _ordered(value: Any) -> Any:
    """Groups with their name first, and lists where a signature has tuples: what YAML gives back."""
    if isinstance(value, dict):
        return {key: _ordered(part) for key, part in sorted(value.items(), key=lambda item: item[0] != "name")}
    return [_ordered(part) for part in value] if isinstance(value, (list, tuple)) else value


def _check_key(key: str, defaults: dict[str, Any], prefixes: dict[str, str]) -> None:
    """Raises ZooError, naming the nearest, for a key that a recipe of this task doesn't have."""
    if key in defaults or any(key.startswith(p) and key.removeprefix(p).isidentifier() for p in prefixes):
        return
    if key.startswith(OPEN) and OPEN not in prefixes:
        word, keys = key.rpartition(".")[2], " and ".join(prefixes.values())
        raise ZooError(
            f"{key} is not a key of this recipe: its task has the backbones {keys}; write "
            + " or ".join(f"{prefix}{word}" for prefix in prefixes)
        )
    raise ZooError(f"{key} is not a key of this recipe{nearest(key, defaults)}")


def _check_value(key: str, value: Any, defaults: dict[str, Any]) -> None:
    if key.startswith(OPEN) and key.rpartition(".")[2] in ("size", "img_size"):
        raise ZooError(
            f"{key} can't be set in a recipe: the side of the pictures, for the data and the backbone alike, is "
            "data.size"
        )
    if SECRET.search(key) and not isinstance(value, (bool, types.NoneType)):  # as a ViT's class_token
        raise ZooError(
            f"{key} looks like a secret, and a recipe is kept and published with its checkpoint; leave it out"
        )
    if value is None and defaults.get(key, 0) is not None:
        raise ZooError(f"{key} can't be empty")
    if isinstance(value, (list, tuple)):
        for part in value:
            _check_value(key, part, defaults)
    elif not isinstance(value, (str, int, float, bool, types.NoneType)):
        kind = "mapping" if isinstance(value, dict) else type(value).__name__
        raise ZooError(f"{key} holds a {kind}; use numbers, words or lists of them")
    _check_plain(key, value)


def _check_plain(key: str, value: Any) -> None:
    for part in value if isinstance(value, (list, tuple)) else []:
        _check_plain(key, part)
    if isinstance(value, str) and not value.isascii():
        try:
            os.fsencode(value)  # bytes that aren't UTF-8, as a file's name may have them, are none the less
        except UnicodeEncodeError:
            raise ZooError(f"{key} holds half a character ({ascii(value)[:80]}), which nothing can be called") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ZooError(f"{key} is {value}; it has to be a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ZooError(f"{key} is a number of {value.bit_length()} bits; it has to fit into 64 with its sign")


def _nested(values: dict[str, Any]) -> dict:
    out: dict = {}
    for key, value in values.items():
        *path, leaf = key.split(".")
        group = out
        for part in path:
            group = group.setdefault(part, {})
        group[leaf] = value
    return out


def _sentence(text: str) -> str:
    """jsonargparse's message as one sentence of ours."""
    text = " ".join(text.split())
    if missing := re.match(r"the following arguments are required: (.*)", text):
        return f"the recipe lacks {missing[1]}"
    found = re.search(r'[Kk]ey "(?P<key>[^"]+)": ?(?P<what>.*)', text)
    if not found:
        return text
    key, what = found["key"], found["what"]
    if union := re.search(r"Subtypes: \[(?P<types>.*)\] Errors: .* Given value: ?(?P<value>.*)", what):
        kinds = re.sub(r"<class '(\w+)'>", r"\1", union["types"]).replace("NoneType", "null").replace(", ", " or ")
        return f"{key} is {union['value'] or 'empty'!s}, but has to be {kinds}"
    if typed := re.match(r"Expected an? (?P<type>.+?)\. Got value: ?(?P<value>.*)", what):
        kind = re.sub(r"typing\.|<class '|'>", "", typed["type"])
        if literal := re.fullmatch(r"Literal\[(.*)\]", kind):
            kind = f"one of the words {literal[1]}"
        return f"{key} is {typed['value'] or 'empty'!s}, but has to be {kind}"
    return f"{key}: {what}"


def _type_name(kind: Any) -> str:
    """A type as people write it: int, list[float], 32|bf16."""
    if kind is None or kind is types.NoneType:
        return "null"
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in typing.get_args(kind))
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


# ---- writing -------------------------------------------------------------------------------------


def save(resolved: dict, path: str | Path) -> Path:
    """Write a resolved recipe so that it can be run again unchanged."""
    return write_text(path, yaml.dump(resolved, Dumper=_Dumper, sort_keys=False))

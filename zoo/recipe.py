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
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, nearest
from zoo.paths import expanded, shipped, write_text
from zoo.registry import SECRET, task_outline
from zoo.signatures import check_signature, towers_of, type_name
from zoo.strict_yaml import LARGEST, check_size, parse, written

ORDER = ("seed", "data", "backbone", "task", "optim", "trainer")
WEIGHTS = "weights"  # among the keywords of a network: the checkpoint that it starts from
OPEN = "backbone."  # keywords of a network, which are checked when the network is built


# ---- reading -------------------------------------------------------------------------------------


def read(recipe: str | Path) -> dict:
    """The recipe in a file, or the one that came with the zoo under that name. Raises ZooError."""
    path = find(recipe)
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        check_size(len(data), str(path))
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
        if (key.startswith(OPEN) and not key.endswith((".name", f".{WEIGHTS}"))) or value[:1] == "[":
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


def parser(task: type, schema: dict[str, Callable], values: Container[str] = ()):
    """A jsonargparse parser with exactly the keys of a recipe of this task. A network needs no name where `values`,
    the keys of the recipe, have weights for it. Raises ZooError for a task that a recipe can't describe.
    """
    from jsonargparse import ArgumentParser

    check_signature(task)
    out = ArgumentParser(exit_on_error=False, default_env=False, add_help=False)
    out.add_argument("--seed", type=int, default=0, help="the number from which all randomness follows")
    for prefix in tower_prefixes(task):
        required = f"{prefix}{WEIGHTS}" not in values
        out.add_argument(f"--{prefix}name", type=str, required=required, help="a network; see zoo list backbones")
    out.add_argument("--task.name", type=str, required=True, help="a pretext task; see zoo list tasks")
    out.add_class_arguments(task, "task", skip=set(towers_of(task)))
    for name, signature in schema.items():
        add = out.add_class_arguments if inspect.isclass(signature) else out.add_function_arguments
        add(signature, name)
    return out


def tower_prefixes(task: type) -> dict[str, str]:
    """What the keys of each tower's keywords begin with in a recipe -> the tower."""
    towers = list(towers_of(task))
    return {OPEN: "backbone"} if towers == ["backbone"] else {f"{OPEN}{tower}.": tower for tower in towers}


def keys(values: dict[str, Any], schema: dict[str, Callable] | None = None) -> list[dict]:
    """What a recipe with these (dotted) values may say, in a recipe's order: {key, type, default, required, value,
    about} each.
    """
    check = parser(_task(values), schema or groups(), values)
    defaults = dict(flat(check.get_defaults().as_dict()))
    rows = []
    for action in (action for action in check._actions if action.dest in defaults):
        kind = getattr(action, "_typehint", None) or action.type
        about = " ".join((action.help or "").replace("%%", "%").split())
        rows.append(
            {
                "key": action.dest,
                "type": type_name(kind),
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
            "about": "the checkpoint to start from" if key.endswith(f".{WEIGHTS}") else "a keyword of the network",
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
    prefixes, check = tower_prefixes(task), parser(task, schema or groups(), values)
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
    if key.startswith(OPEN) and key.endswith(f".{WEIGHTS}") and not (isinstance(value, str) and value.strip()):
        raise ZooError(f"{key} is {value!r}; give a checkpoint's name, a folder or hf://organisation/name")
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


# ---- writing -------------------------------------------------------------------------------------


def save(resolved: dict, path: str | Path) -> Path:
    """Write a resolved recipe so that it can be run again unchanged."""
    return write_text(path, written(resolved))

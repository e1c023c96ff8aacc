"""Recipes: read, override, check, resolve, save. A recipe is data (names and plain values, never an import path), safe to take from a stranger.

jsonargparse serves as a type checker behind our own reader: it never sees the command line, and no file name reaches it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import ZooError, nearest
from zoo.paths import shipped, write_text

LARGEST, DEEPEST = 64 * 1024, 8                     # bytes of a recipe; levels of nesting
OPEN = "backbone."                                  # keywords under it are timm's own, checked when the model is built


# ---- reading -------------------------------------------------------------------------------------------------------------

class _Loader(yaml.SafeLoader):
    """YAML without aliases, tags, duplicate keys, dates, or the 1e-3-is-a-string trap."""

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


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))


def read(recipe: str | Path) -> dict:
    """The recipe in a file, or the one that came with the zoo under that name. Raises ZooError."""
    path = find(recipe)
    try:
        data = path.read_bytes()[: LARGEST + 1]
        return parse(data.decode("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"{path} can't be read as a recipe: {error}") from error


def find(recipe: str | Path) -> Path:
    """The file of a recipe, given as a path or by name."""
    path = Path(recipe)
    if path.is_file():
        return path
    if path.is_dir():
        raise ZooError(f"{path} is a folder; a recipe is a YAML file")
    known = {name: file for name, file, _ in list_recipes()}
    name = str(recipe).removesuffix(".yaml")
    if name not in known:
        raise ZooError(f"there is no recipe {str(recipe)!r}, neither as a file nor among those that came with the zoo{nearest(name, known)}")
    return known[name]


def list_recipes() -> list[tuple[str, Path, str]]:
    """(name, file, first line of its header) of the pretraining recipes that came with the zoo."""
    folder = shipped("recipes")
    if folder is None:
        return []
    return [(path.stem, path, path.read_text(encoding="utf-8").split("\n")[0].lstrip("# ")) for path in sorted((folder / "pretrain").glob("*.yaml"))]


def parse(text: str, where: str) -> dict:
    """YAML text -> nested dict with words as keys. Raises ZooError; no text makes it raise anything else, or run anything."""
    if len(text) > LARGEST:
        raise ZooError(f"{where} is larger than {LARGEST // 1024} KiB, so it is no recipe")
    try:
        out = yaml.load(text, _Loader)              # a SafeLoader
    except ZooError as error:
        raise ZooError(f"{where}, {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise ZooError(f"{where} is not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(out, dict) or not all(isinstance(key, str) for key in out):
        raise ZooError(f"{where} is no recipe: it has to be a mapping of groups such as data, backbone and task")
    return out


def overrides(words: list[str]) -> dict[str, Any]:
    """Command-line words `--group.key VALUE` or `--group.key=VALUE` -> {"group.key": value}.

    Words stay words, since the key's type decides; only lists and timm's keywords, whose types we don't know, are read as YAML.
    """
    out, rest = {}, iter(words)
    for word in rest:
        if not word.startswith("--"):
            raise ZooError(f"{word!r} is not an option; recipe keys are written --group.key VALUE")
        key, given, value = word[2:].partition("=")
        if not given:
            value = next(rest, None)
            if value is None:
                raise ZooError(f"--{key} lacks its value")
        if (key.startswith(OPEN) and key != "backbone.name") or value[:1] == "[":
            value = parse(f"value: {value}", f"--{key}")["value"]
        out[key] = value
    return out


def flat(recipe: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("group.key", value) pairs of a nested recipe."""
    for key, value in recipe.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# ---- checking ------------------------------------------------------------------------------------------------------------

def groups() -> dict[str, Callable]:
    """The functions and classes whose signatures are the schema of the groups beside task and backbone."""
    from zoo.data.module import create_data
    from zoo.optim import Optim
    from zoo.pretrain import Training

    return {"data": create_data, "optim": Optim, "trainer": Training}


def parser(task: type, schema: dict[str, Callable], usage: str = "zoo pretrain RECIPE [--group.key VALUE ...]"):
    """A jsonargparse parser with exactly the keys of a recipe of this task; its help is the recipe's."""
    import inspect

    from jsonargparse import ArgumentParser

    out = ArgumentParser(exit_on_error=False, default_env=False, usage=usage, add_help=False)
    out.add_argument("--seed", type=int, default=0, help="the number from which all randomness follows")
    out.add_argument("--backbone.name", type=str, required=True, help="a timm model; further --backbone.KEY VALUE go to timm as they are")
    out.add_argument("--task.name", type=str, required=True, help="see zoo list tasks")
    out.add_class_arguments(task, "task", skip={"backbone"})
    for name, signature in schema.items():
        add = out.add_class_arguments if inspect.isclass(signature) else out.add_function_arguments
        add(signature, name)
    return out


def resolve(recipe: dict, changes: dict[str, Any] | None = None, schema: dict[str, Callable] | None = None) -> dict:
    """The recipe with `changes` laid over it and every default written out; a fixed point of itself.

    Raises ZooError for an unknown key (with the nearest), an empty or non-finite value, a wrong type, and a missing key.
    """
    from jsonargparse import ArgumentError
    from zoo.registry import find_task

    values = dict(flat(recipe)) | (changes or {})
    name = values.get("task.name")
    if not isinstance(name, str):
        raise ZooError("the recipe names no task; write task: {name: ...}, with a name from zoo list tasks")
    check = parser(find_task(name), schema or groups())
    defaults = dict(flat(check.get_defaults().as_dict()))
    for key, value in values.items():
        _check_value(key, value, defaults)
    backbone = {key.removeprefix(OPEN): value for key, value in values.items() if key.startswith(OPEN)}
    try:
        typed = check.parse_object(_nested({key: value for key, value in values.items() if not key.startswith(OPEN) or key == "backbone.name"}))
    except ArgumentError as error:
        raise ZooError(_sentence(str(error))) from None
    out = typed.as_dict() | {"backbone": backbone}
    return {key: dict(sorted(out[key].items(), key=lambda item: item[0] != "name")) if isinstance(out[key], dict) else out[key]
            for key in ("seed", "data", "backbone", "task", "optim", "trainer") if key in out}


def _check_value(key: str, value: Any, defaults: dict[str, Any]) -> None:
    if key not in defaults and not (key.startswith(OPEN) and key.count(".") == 1):
        raise ZooError(f"{key} is not a key of this recipe{nearest(key, defaults)}")
    if value is None and defaults.get(key, 0) is not None:
        raise ZooError(f"{key} can't be empty")
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, float) and not math.isfinite(part):
            raise ZooError(f"{key} is {part}; it has to be a finite number")
        if not isinstance(part, (str, int, float, bool, list, type(None))):
            raise ZooError(f"{key} holds a {type(part).__name__}; use numbers, words or lists of them")


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
    found = re.search(r'[Kk]ey "(?P<key>[^"]+)":\s*(?P<what>.*)', text, re.S)
    if not found:
        return " ".join(text.split())
    key, what = found["key"], " ".join(found["what"].split())
    typed = re.match(r"Expected an? (?P<type>.+?)\. Got value: (?P<value>.*)", what)
    if typed:
        kind = re.sub(r"typing\.|<class '|'>", "", typed["type"])
        return f"{key} is {typed['value'].strip()}, but has to be {kind}"
    return f"{key}: {what}"


# ---- writing -------------------------------------------------------------------------------------------------------------

def save(resolved: dict, path: str | Path) -> Path:
    """Write a resolved recipe so that it can be run again unchanged."""
    return write_text(path, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))

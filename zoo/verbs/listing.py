"""Verbs that list what there is and say what is known of it.

Everything but the standard library is imported inside the verb that needs it, so that listing stays quick.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Callable
from shlex import quote
from typing import Any

from zoo.errors import ZooError, nearest
from zoo.paths import expanded
from zoo.verbs.printing import print_rows, say

KINDS = ("tasks", "backbones", "data", "recipes", "checkpoints")
CHECKED = ("tasks", "backbones", "data")  # kinds that other packages add to


def list_(given: argparse.Namespace) -> Any:
    if given.check and given.kind not in CHECKED:
        raise ZooError("--check imports plugins of one kind, so write:  zoo list tasks --check (or data, or backbones)")
    if given.kind:
        rows = _matching(given, given.kind)
        print_rows(given, rows)
        return rows
    out = {}
    for kind in KINDS:
        if kind == "backbones":  # 1,300 of them
            continue
        try:
            out[kind] = _matching(given, kind)
        except ZooError as error:  # such as a hub that can't be reached: the rest is there all the same
            out[kind] = []
            print(f"zoo: {error}", file=sys.stderr)
        say(given, f"{kind}:")
        print_rows(given, out[kind])
    return out


def _matching(given: argparse.Namespace, kind: str) -> list[dict]:
    return [row for row in _LISTS[kind](given) if fnmatch.fnmatchcase(row["name"], given.glob)]


def _tasks(given: argparse.Namespace) -> list[dict]:
    from zoo import registry
    from zoo.plugin_trial import check_tasks

    entries = _wanted(given, registry.list_tasks())
    entries = check_tasks(entries) if getattr(given, "check", False) else entries
    _warn(given, registry.notices())
    return [
        {
            "name": entry.name,
            "from": entry.origin,
            "about": entry.summary,
            "needs": list(entry.needs),
            "uses_labels": entry.uses_labels,
            "problem": entry.problem,
        }
        for entry in entries
    ]


def _wanted(given: argparse.Namespace, entries: list) -> list:
    """Entries whose name matches the pattern, so that only these are imported by --check."""
    return [entry for entry in entries if fnmatch.fnmatchcase(entry.name, getattr(given, "glob", "*"))]


def _warn(given: argparse.Namespace, sentences: list[str]) -> None:
    """Sentences for people, each once: a distribution whose metadata can't be read is left out of every listing."""
    said = vars(given).setdefault("warned", set())
    for sentence in sentences:
        if sentence not in said:
            print(f"zoo: {sentence}", file=sys.stderr)
        said.add(sentence)


def _plugged(given: argparse.Namespace, entries: list, notices: list[str]) -> list:
    """Data sets or backbones of other packages, with --check imported, each in a process of its own."""
    from zoo.plugin_trial import check_plugins

    _warn(given, notices)
    entries = _wanted(given, entries)
    return check_plugins(entries) if getattr(given, "check", False) else entries


def _data(given: argparse.Namespace) -> list[dict]:
    from zoo.data import plugged
    from zoo.data.datasets import list_data

    rows = [
        {
            "name": info.name,
            "from": "zoo",
            "fields": ", ".join(info.fields),
            "size": info.size,
            "channels": info.channels,
            "classes": len(info.classes),
            "images": sum(info.splits.values()),
            "license": info.license,
            "about": info.summary,
            "problem": None,
        }
        for info in list_data()
    ]
    unknown = dict.fromkeys(rows[0])  # until the set's package is imported
    for entry in _plugged(given, plugged.installed(), plugged.notices()):
        said = {"name": entry.name, "from": entry.origin, "about": entry.summary, "problem": entry.problem}
        rows.append(unknown | said)
    return rows


def _recipes(given: argparse.Namespace) -> list[dict]:
    from zoo.recipe import list_recipes

    return [{"name": name, "about": header} for name, _, header in list_recipes()]


def _backbones(given: argparse.Namespace) -> list[dict]:
    from zoo.backbones import names

    rows = [
        {
            "name": name,
            "reads": names.reads(name),
            "from": "transformers" if names.reads(name) == "text" else "timm",
            "about": "",
            "problem": None,
        }
        for name in names.built_in()
    ]
    for entry in _plugged(given, names.installed(), names.notices()):
        said = {"from": entry.origin, "about": entry.summary, "problem": entry.problem}
        rows.append({"name": entry.name, "reads": None} | said)  # what it reads is known when it is imported
    return rows


def _checkpoints(given: argparse.Namespace) -> list[dict]:
    from zoo.hub import hub

    return hub.list_checkpoints(given.hub)


_LISTS: dict[str, Callable[[argparse.Namespace], list[dict]]] = {
    "tasks": _tasks,
    "backbones": _backbones,
    "data": _data,
    "recipes": _recipes,
    "checkpoints": _checkpoints,
}


def info(given: argparse.Namespace) -> Any:
    """The first thing of that name among tasks, recipes, data sets, backbones, folders and, last, the hub's
    checkpoints.
    """
    from zoo.hub.hub import local_card

    found = (
        _task_info(given)
        or _recipe_info(given)
        or _data_info(given)
        or _backbone_info(given)
        or _checkpoint_info(given)
    )
    if found is None:
        known = [row["name"] for kind in KINDS for row in _LISTS[kind](given)]
        raise ZooError(
            f"{given.name!r} is neither a task, a recipe, a data set, a backbone nor a "
            f"checkpoint{nearest(given.name, known)}"
        )
    if found["kind"] == "recipe" and (card := local_card(given.name, given.hub)):  # what came of it has its name
        found["checkpoint"] = card
    for key, value in found.items():
        if key != "text":
            say(
                given,
                f"{key}: {value}"
                if not isinstance(value, (dict, list))
                else f"{key}: {json.dumps(value, ensure_ascii=False)}",
            )
    if found.get("text"):  # of a task: its figure, which is to be looked at
        say(given, f"\n{found['text']}")
    return found


def _task_info(given: argparse.Namespace) -> dict | None:
    row = next((row for row in _tasks(given) if row["name"] == given.name), None)
    if row is None:
        return None
    from inspect import cleandoc

    from zoo.registry import find_task, list_tasks, task_arguments

    try:
        text = next(entry.text for entry in list_tasks() if entry.name == given.name)
        if row["from"] != "zoo":  # what it needs, and what it says of itself, is known only now
            task = find_task(given.name)
            row |= {"needs": list(task.needs), "uses_labels": "label" in task.needs}
            text = cleandoc(sys.modules[task.__module__].__doc__ or "").partition("\n")[2].strip("\n")
        return {"kind": "task"} | row | {"arguments": task_arguments(given.name), "text": text}
    except ZooError as error:  # a plugin that can't be imported is still worth a description
        return {"kind": "task"} | row | {"problem": str(error)}


def _recipe_info(given: argparse.Namespace) -> dict | None:
    from zoo import recipe as recipes

    row = next((row for row in _recipes(given) if row["name"] == given.name), None)
    return row and {"kind": "recipe"} | row | {"file": str(recipes.find(given.name))} | recipes.read(given.name)


def _data_info(given: argparse.Namespace) -> dict | None:
    from dataclasses import asdict

    from zoo.data.datasets import data_info

    row = next((row for row in _data(given) if row["name"] == given.name), None)
    if row is None and not given.name.startswith(("folder:", "shards:")):
        return None
    plugin = {"from": row["from"]} if row and row["from"] != "zoo" else {}
    try:
        found = data_info(given.name)
    except ZooError as error:  # a plugin that can't be imported is still worth a description
        if not plugin:
            raise
        return {"kind": "data", "name": given.name} | plugin | {"about": row["about"], "problem": str(error)}
    kinds = {name: {"kind": kind.kind} | asdict(kind) for name, kind in found.kinds.items()}
    return {"kind": "data"} | asdict(found) | {"kinds": kinds} | plugin


def _backbone_info(given: argparse.Namespace) -> dict | None:
    from zoo.backbones.names import arguments_of

    row = next((row for row in _backbones(given) if row["name"] == given.name), None)
    about = {
        None: row and row["about"],
        "image": "a timm model; keywords under backbone. in a recipe go to timm as they are",
        "text": "a network of transformers without a head, behind a tokenizer; pip install 'pretext-zoo[text]'",
        "audio": "a timm model with one channel, behind log-mel images of sound; further keywords go to timm",
    }
    return row and {"kind": "backbone"} | row | {"about": about[row["reads"]]} | arguments_of(given.name)


def _checkpoint_info(given: argparse.Namespace) -> dict | None:
    from zoo.card import read_card
    from zoo.hub.hub import local_card, local_checkpoint

    folder = local_checkpoint(expanded(given.name))
    if folder is not None:
        return {"kind": "checkpoint"} | read_card(folder)
    row = local_card(given.name, given.hub) or next(
        (row for row in _checkpoints(given) if row["name"] == given.name), None
    )
    return row and {"kind": "checkpoint"} | row


def data(given: argparse.Namespace) -> Any:
    if given.what == "list":
        rows = _data(given)
        print_rows(given, rows)
        return rows
    if given.what == "shard":
        if not given.name or not given.out:
            raise ZooError(
                "zoo data shard needs a folder of pictures and a place to write to: zoo data shard FOLDER --out DIR"
            )
        from zoo.data.shards.writer import write_shards

        path = write_shards(given.name, given.out, given.per_shard)
        say(given, f"{path}\nuse it as --data.name {quote(f'shards:{path}')}")
        return {"folder": str(path), "data": f"shards:{path}"}
    if not given.name:
        raise ZooError("zoo data get needs a name; see zoo data list")
    from zoo.data.datasets import get_data

    path = get_data(given.name, given.source)
    say(given, str(path))
    return {"folder": str(path)}

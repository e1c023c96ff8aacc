"""The verbs of the command line: each takes the parsed words, prints for people, and returns what --json prints.

Everything but the standard library is imported inside the verb that needs it, so that listing and helping stay quick.
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

KINDS = ("tasks", "backbones", "data", "recipes", "checkpoints")
CHECKED = ("tasks", "backbones", "data")  # kinds that other packages add to


# ---- what there is -------------------------------------------------------------------------------


def list_(given: argparse.Namespace) -> Any:
    if given.check and given.kind not in CHECKED:
        raise ZooError("--check imports plugins of one kind, so write:  zoo list tasks --check (or data, or backbones)")
    if given.kind:
        rows = _matching(given, given.kind)
        _table(given, rows)
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
        _say(given, f"{kind}:")
        _table(given, out[kind])
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
            _say(
                given,
                f"{key}: {value}"
                if not isinstance(value, (dict, list))
                else f"{key}: {json.dumps(value, ensure_ascii=False)}",
            )
    if found.get("text"):  # of a task: its figure, which is to be looked at
        _say(given, f"\n{found['text']}")
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
        _table(given, rows)
        return rows
    if given.what == "shard":
        if not given.name or not given.out:
            raise ZooError(
                "zoo data shard needs a folder of pictures and a place to write to: zoo data shard FOLDER --out DIR"
            )
        from zoo.data.shards.writer import write_shards

        path = write_shards(given.name, given.out, given.per_shard)
        _say(given, f"{path}\nuse it as --data.name {quote(f'shards:{path}')}")
        return {"folder": str(path), "data": f"shards:{path}"}
    if not given.name:
        raise ZooError("zoo data get needs a name; see zoo data list")
    from zoo.data.datasets import get_data

    path = get_data(given.name, given.source)
    _say(given, str(path))
    return {"folder": str(path)}


# ---- training and what it is worth ---------------------------------------------------------------


def pretrain(given: argparse.Namespace) -> Any:
    from zoo import recipe as recipes

    changes = recipes.overrides(given.rest)
    if given.help:
        return _recipe_help(given, changes)
    recipes.resolve(recipes.read(given.recipe), changes)  # whoever mistypes something needn't wait for torch
    from zoo.pretrain import pretrain as run

    folder = run(
        given.recipe,
        out=given.out,
        resume=given.resume,
        smoke=given.smoke,
        logger=given.logger,
        progress=not given.no_progress,
        **changes,
    )
    from zoo.machine.ranks import first

    if not first():  # one of several processes has said it
        given.json = False
        return None
    _say(
        given,
        f"{folder / 'checkpoint'} is the checkpoint; see what it is worth with:  zoo evaluate {quote(str(folder))}",
    )
    return {"run": str(folder), "checkpoint": str(folder / "checkpoint")}


def _recipe_help(given: argparse.Namespace, changes: dict) -> Any:
    """Exactly the keys of this recipe's task, with type, default, the recipe's own value and meaning."""
    from zoo import recipe as recipes

    values = dict(recipes.flat(recipes.read(given.recipe))) | changes
    rows = recipes.keys(values)
    if not given.json:
        print(f"Keys of {given.recipe}, each given as --KEY VALUE. In brackets: the default.\n")
        for row in rows:
            facts = [
                "required" if row["required"] else "",
                "" if row["required"] or not row["type"] else _plain(row["default"]),
                f"here {_plain(row['value'])}" if row["value"] is not None and row["value"] != row["default"] else "",
            ]
            print(
                f"  --{row['key']} {row['type'] or 'VALUE'} [{'; '.join(fact for fact in facts if fact)}]\n      "
                f"{row['about']}"
            )
        print("  --backbone.KEYWORD VALUE\n      any further keyword of the timm model")
    return {"task": values["task.name"], "keys": rows}


def adapt(given: argparse.Namespace) -> Any:
    from dataclasses import asdict

    from zoo.adapt import TUNED
    from zoo.adapt import adapt as run
    from zoo.card import label_amount

    labels = 1.0 if given.labels is None else _amount(given.labels)
    result = run(
        given.checkpoint,
        given.data,
        mode=given.mode,
        labels=labels,
        per_class=given.per_class,
        out=given.out,
        hub=given.hub,
        seed=given.seed,
        baselines=not given.no_baselines,
    )
    used = f"{result.images:,} labels, {label_amount(result.labels)}"
    _say(
        given,
        f"{given.mode} on {given.data} ({used}): {result.value:.1f} % on test"
        + (f"; the classifier is {result.folder}" if result.folder else ""),
    )
    for name, value in result.baselines.items():
        probe = " (linear probe)" if name == "pixels" and given.mode in TUNED else ""
        _say(given, f"  {name + probe:<24}{value:5.1f} %")
    return asdict(result)


def evaluate(given: argparse.Namespace) -> Any:
    from zoo.evaluate.printed import print_table
    from zoo.evaluate.table import evaluate as run

    rows = run(
        given.checkpoint,
        given.data,
        protocols=tuple(given.protocols),
        labels=tuple(_amount(word) for word in given.labels),
        hub=given.hub,
        save=given.save,
        baselines=not given.no_baselines,
    )
    if not given.json:
        print_table(rows)
    return rows


def reproduce(given: argparse.Namespace) -> Any:
    from zoo.evaluate.reproduce import reproduce as run

    rows = run(given.checkpoint, hub=given.hub)
    for row in rows:
        now = (
            "not measured" if row["now"] is None else f"{row['now']:.2f}"
        )  # a representation that the card alone knows
        _say(given, f"{row['row']}: card {row['was']:.2f}, now {now}: {'holds' if row['holds'] else 'DOES NOT HOLD'}")
    given.status = 0 if all(row["holds"] for row in rows) else 1
    return rows


def report(given: argparse.Namespace) -> Any:
    from zoo.hub.hub import find
    from zoo.report.page import write_page

    path = write_page(given.out, [find(name, given.hub) for name in given.checkpoints])
    _say(given, f"{path} is written")
    return {"page": str(path)}


def quickstart(given: argparse.Namespace) -> Any:
    from zoo.quickstart import quickstart as run

    return run(out=given.out, steps=given.steps, progress=not given.no_progress, resume=given.resume)


# ---- hubs ----------------------------------------------------------------------------------------


def pull(given: argparse.Namespace) -> Any:
    from zoo.hub import hub

    folder = hub.pull(given.name, hub=given.hub)
    _say(given, str(folder))
    return {"folder": str(folder)}


def import_(given: argparse.Namespace) -> Any:
    from zoo import recipe as recipes

    keywords = recipes.overrides(given.rest)
    for key in keywords:
        if not key.startswith(recipes.OPEN) or not key.removeprefix(recipes.OPEN).isidentifier():
            raise ZooError(
                f"--{key} is nothing that zoo import takes; keywords of the timm model are written --backbone.KEYWORD "
                "VALUE"
            )
    from zoo.importing import import_checkpoint

    found = import_checkpoint(
        given.file,
        given.backbone,
        given.out,
        size=given.size,
        prefix=given.prefix,
        license=given.license,
        allow_partial=given.allow_partial,
        **{key.removeprefix(recipes.OPEN): value for key, value in keywords.items()},
    )
    _say(given, found.sentence)
    return {
        "folder": str(found.folder),
        "prefix": found.prefix,
        "matched": round(found.share, 4),
        "left_aside": found.left_aside,
        "missing": list(found.missing),
    }


def export(given: argparse.Namespace) -> Any:
    from zoo.checkpoint.runtime import export_checkpoint

    found = export_checkpoint(given.checkpoint, given.to, given.out, given.hub)
    _say(given, found.sentence)
    return {
        "file": str(found.file),
        "format": found.format,
        "output": found.kind,
        "input": list(found.input),
        "outputs": found.outputs,
        "difference": found.difference,
    }


def push(given: argparse.Namespace) -> Any:
    from zoo.hub import hub

    folder = hub.find(given.checkpoint)
    if given.license:
        from zoo.checkpoint.write import update_card

        update_card(folder, license=given.license)
    where = hub.push(folder, given.to, name=given.name, replace=given.replace)
    _say(given, f"pushed to {where}")
    return {"address": where}


def verify(given: argparse.Namespace) -> Any:
    from zoo.hub import hub

    problems = hub.verify(given.target)
    for problem in problems:
        _say(given, problem)
    if not problems:
        _say(given, "every file is what its card says")
    given.status = 1 if problems else 0
    return {"problems": problems}


# ---- for authors ---------------------------------------------------------------------------------


def new_task(given: argparse.Namespace) -> Any:
    from zoo.newtask import new_task as run

    folder = run(given.name, given.out, given.kind)
    _say(
        given,
        f"{folder} is written. Install and test it with:\n  pip install -e {quote(str(folder))}\n  pytest "
        f"{quote(str(folder))}",
    )
    return {"folder": str(folder)}


# ---- printing ------------------------------------------------------------------------------------


def _amount(word: str) -> float | int:
    try:
        return int(word) if word.isdigit() else float(word)
    except ValueError:
        raise ZooError(f"--labels {word!r} is neither a share such as 0.01 nor a number per class such as 5") from None


def _say(given: argparse.Namespace, text: str) -> None:
    if not given.json:
        print(text)


def _plain(value: Any) -> str:
    """A value as a recipe has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _table(given: argparse.Namespace, rows: list[dict]) -> None:
    """Columns as wide as they need to be, under their names; `about` and what is wrong run on at the end."""
    if given.json:
        return
    if not rows:
        print("  none")
        return
    shown = [
        key
        for key in rows[0]
        if key not in ("about", "needs", "uses_labels", "problem") and not isinstance(rows[0][key], (dict, list))
    ]
    cells = [[str("" if row[key] is None else row[key]) for key in shown] + [_remarks(row)] for row in rows]
    if len(shown) > 1:
        cells.insert(0, [*shown, "about" if "about" in rows[0] else ""])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1] + [0]
    for line in cells:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _remarks(row: dict) -> str:
    parts = [
        row.get("about") or "",
        "(uses labels)" if row.get("uses_labels") else "",
        f"BROKEN: {row['problem']}" if row.get("problem") else "",
    ]
    return " ".join(part for part in parts if part)

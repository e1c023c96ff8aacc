"""The command line: verbs that are plain functions. Nothing here imports torch until a verb needs it."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, nearest

KINDS = ("tasks", "backbones", "data", "recipes", "checkpoints")


# ---- verbs: each takes the parsed words and returns what --json prints -----------------------------------------------------

def list_(given: argparse.Namespace) -> Any:
    kinds = [given.kind] if given.kind else [kind for kind in KINDS if kind != "backbones"]
    out = {kind: [row for row in _LISTS[kind](given) if fnmatch.fnmatch(row["name"], given.glob)] for kind in kinds}
    if not given.json:
        for kind, rows in out.items():
            print(f"{kind}:" if len(out) > 1 else "", end="\n" if len(out) > 1 else "")
            _table(rows)
    return out if len(out) > 1 else out[kinds[0]]


def _tasks(given: argparse.Namespace) -> list[dict]:
    from zoo import registry

    entries = registry.check_tasks() if getattr(given, "check", False) else registry.list_tasks()
    for sentence in registry.shadowed():
        print(sentence, file=sys.stderr)
    return [{"name": entry.name, "from": entry.origin, "about": entry.summary + (" (uses labels)" if entry.uses_labels else "")}
            | ({"problem": entry.problem} if entry.problem else {}) for entry in entries]


def _data(given: argparse.Namespace) -> list[dict]:
    from zoo.data.datasets import list_data

    return [{"name": info.name, "fields": ", ".join(info.fields), "size": info.size, "images": sum(info.splits.values()), "license": info.license}
            for info in list_data()]


def _recipes(given: argparse.Namespace) -> list[dict]:
    from zoo.recipe import list_recipes

    return [{"name": name, "about": header} for name, _, header in list_recipes()]


def _backbones(given: argparse.Namespace) -> list[dict]:
    from zoo.registry import list_backbones

    return [{"name": name} for name in list_backbones()]


def _checkpoints(given: argparse.Namespace) -> list[dict]:
    from zoo import hub

    return hub.list_checkpoints(getattr(given, "hub", None))


_LISTS: dict[str, Callable[[argparse.Namespace], list[dict]]] = {
    "tasks": _tasks, "backbones": _backbones, "data": _data, "recipes": _recipes, "checkpoints": _checkpoints}


def info(given: argparse.Namespace) -> Any:
    found: list[dict] = []
    for kind in ("tasks", "recipes", "data", "checkpoints"):
        found += [row | {"kind": kind.rstrip("s")} for row in _LISTS[kind](given) if row["name"] == given.name]
    if not found and (Path(given.name).is_dir()):
        from zoo.card import read_card
        from zoo.hub import find

        found = [read_card(find(given.name), hashed=False) | {"kind": "checkpoint"}]
    if not found:
        from zoo.registry import list_backbones

        if given.name in list_backbones():
            found = [{"name": given.name, "kind": "backbone", "about": "a timm model; keywords under backbone. go to timm as they are"}]
    if not found:
        known = [row["name"] for kind in _LISTS for row in _LISTS[kind](given)]
        raise ZooError(f"{given.name!r} is neither a task, a recipe, a data set, a checkpoint nor a backbone{nearest(given.name, known)}")
    for row in found:
        if row["kind"] == "task":
            row["arguments"] = _signature(row["name"])
    if not given.json:
        for row in found:
            for key, value in row.items():
                print(f"{key}: {json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value}")
    return found[0] if len(found) == 1 else found


def _signature(name: str) -> dict:
    """A built-in task's arguments and defaults, read from its source without importing it."""
    import ast

    from zoo.registry import list_tasks

    entry = next(entry for entry in list_tasks() if entry.name == name)
    if entry.origin != "zoo":
        return {}
    path = Path(__file__).parent / "tasks" / f"{entry.target.split(':')[0].rsplit('.', 1)[1]}.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names = [argument.arg for argument in node.args.args][-len(node.args.defaults):] if node.args.defaults else []
            return {name: ast.unparse(value) for name, value in zip(names, node.args.defaults)}
    return {}


def pretrain(given: argparse.Namespace) -> Any:
    from zoo import recipe as recipes

    changes = recipes.overrides(given.rest)
    if given.help:
        values = recipes.read(given.recipe) if given.recipe else {}
        return _pretrain_help(given, values, changes)
    from zoo.pretrain import pretrain as run

    folder = run(given.recipe, out=given.out, resume=given.resume, smoke=given.smoke, logger=given.logger, progress=not given.no_progress, **changes)
    _say(given, f"{folder / 'checkpoint'} is the checkpoint; see what it is worth with:  zoo evaluate {folder}")
    return {"run": str(folder), "checkpoint": str(folder / "checkpoint")}


def _pretrain_help(given: argparse.Namespace, values: dict, changes: dict) -> Any:
    from zoo import recipe as recipes
    from zoo.registry import find_task

    name = (dict(recipes.flat(values)) | changes).get("task.name")
    if not isinstance(name, str):
        raise ZooError("the recipe names no task; write task: {name: ...}, with a name from zoo list tasks")
    parser = recipes.parser(find_task(name), recipes.groups(), usage=f"zoo pretrain {given.recipe} [--group.key VALUE ...]")
    if not given.json:
        print(f"{_PARSERS['pretrain'].format_help()}\nkeys of this recipe, with the defaults of task {name}:\n\n{parser.format_help()}")
    return {"task": name, "keys": dict(recipes.flat(parser.get_defaults().as_dict()))}


def adapt(given: argparse.Namespace) -> Any:
    from dataclasses import asdict

    from zoo.adapt import adapt as run

    result = run(given.checkpoint, given.data, mode=given.mode, labels=given.labels, per_class=given.per_class, out=given.out, hub=given.hub, seed=given.seed)
    _say(given, f"{given.mode} on {given.data}: {result.value:.1f} % on test" + (f"; the classifier is {result.folder}" if result.folder else ""))
    return asdict(result)


def evaluate(given: argparse.Namespace) -> Any:
    from zoo.evaluate.table import evaluate as run
    from zoo.evaluate.table import print_table

    rows = run(given.checkpoint, given.data, protocols=tuple(given.protocols), labels=tuple(_amount(word) for word in given.labels), hub=given.hub,
               save=given.save)
    if not given.json:
        print_table(rows)
    return rows


def reproduce(given: argparse.Namespace) -> Any:
    from zoo.evaluate.table import reproduce as run

    rows = run(given.checkpoint, hub=given.hub)
    for row in rows:
        _say(given, f"{row['row']}: card {row['was']:.2f}, now {row['now']:.2f}: {'holds' if row['holds'] else 'DOES NOT HOLD'}")
    if not all(row["holds"] for row in rows):
        given.status = 1
    return rows


def report(given: argparse.Namespace) -> Any:
    from zoo.hub import find
    from zoo.report.page import write_page

    path = write_page(given.out, [find(name, given.hub) for name in given.checkpoints])
    _say(given, f"{path} is written")
    return {"page": str(path)}


def pull(given: argparse.Namespace) -> Any:
    from zoo import hub

    folder = hub.pull(given.name, hub=given.hub)
    _say(given, str(folder))
    return {"folder": str(folder)}


def push(given: argparse.Namespace) -> Any:
    from zoo import hub

    folder = hub.find(given.checkpoint)
    if given.license:
        from zoo.checkpoint import update_card

        update_card(folder, license=given.license)
    where = hub.push(folder, given.to, name=given.name, replace=given.replace)
    _say(given, f"pushed to {where}")
    return {"address": where}


def verify(given: argparse.Namespace) -> Any:
    from zoo import hub

    problems = hub.verify(given.target)
    for problem in problems:
        _say(given, problem)
    if not problems:
        _say(given, "every file is what its card says")
    given.status = 1 if problems else 0
    return {"problems": problems}


def data(given: argparse.Namespace) -> Any:
    if given.what == "list":
        rows = _data(given)
        if not given.json:
            _table(rows)
        return rows
    if not given.name:
        raise ZooError("zoo data get needs a name; see zoo data list")
    from zoo.data.datasets import get_data

    _say(given, f"getting {given.name}")
    path = get_data(given.name, given.source)
    _say(given, str(path))
    return {"folder": str(path)}


def new_task(given: argparse.Namespace) -> Any:
    from zoo.newtask import new_task as run

    folder = run(given.name, given.out)
    _say(given, f"{folder} is written; install it with:  pip install -e {folder}")
    return {"folder": str(folder)}


def quickstart(given: argparse.Namespace) -> Any:
    from zoo.quickstart import quickstart as run

    return run(out=given.out, steps=given.steps, progress=not given.no_progress)


def completion(given: argparse.Namespace) -> Any:
    import shtab

    script = shtab.complete(_parser(), shell=given.shell)
    if not given.json:
        print(script)
    return {"script": script}


# ---- words -----------------------------------------------------------------------------------------------------------------

_PARSERS: dict[str, argparse.ArgumentParser] = {}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ZooError(f"{self.prog}: {message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    top = _Parser(prog="zoo", description="Pretext tasks, recipes and checkpoints for self-supervised representation learning.", allow_abbrev=False)
    top.add_argument("--version", action="store_true", help="print the version")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)

    def verb(name: str, function: Callable, about: str, **options) -> argparse.ArgumentParser:
        out = verbs.add_parser(name, help=about, description=about, allow_abbrev=False, **options)
        out.set_defaults(function=function, status=0)
        out.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, on standard output")
        _PARSERS[name] = out
        return out

    def hub(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--hub", help="a folder, https://... or hf://org/name@revision; default ZOO_HUB, then the hub that came with the zoo")

    p = verb("list", list_, "List tasks, backbones, data sets, recipes or checkpoints.")
    p.add_argument("kind", nargs="?", choices=KINDS, help="by default all but backbones")
    p.add_argument("glob", nargs="?", default="*", help="shell pattern of names")
    p.add_argument("--check", action="store_true", help="import every task in a process of its own and say what is broken")
    hub(p)
    p = verb("info", info, "Say what is known of a task, recipe, data set, checkpoint or backbone.")
    p.add_argument("name")
    hub(p)
    p = verb("pretrain", pretrain, "Run a recipe. Every key of it can be given as --group.key VALUE.", add_help=False)
    p.add_argument("recipe", nargs="?", help="a YAML file, or the name of a recipe that came with the zoo")
    p.add_argument("-h", "--help", action="store_true", help="with a recipe: also list its keys")
    p.add_argument("--out", help="folder of the run; default runs/RECIPE-sSEED")
    p.add_argument("--resume", action="store_true", help="go on from the newest saved state that is whole")
    p.add_argument("--smoke", action="store_true", help="two tiny steps on generated data")
    p.add_argument("--logger", default="csv", help="csv, tensorboard, wandb or none")
    p.add_argument("--no-progress", action="store_true")
    p = verb("adapt", adapt, "Adapt a checkpoint to labelled data and say how good it is on test.")
    p.add_argument("checkpoint", help="a name in the hub, a checkpoint's folder or a run's")
    p.add_argument("--data", required=True, help="a data set's name or folder:PATH")
    p.add_argument("--mode", default="probe", choices=["knn", "probe", "finetune"])
    p.add_argument("--labels", type=float, default=1.0, help="share of the training labels, above 0 and at most 1")
    p.add_argument("--per-class", type=int, help="labels of each class instead of a share")
    p.add_argument("--out", help="folder of the classifier")
    p.add_argument("--seed", type=int, default=0)
    hub(p)
    p = verb("evaluate", evaluate, "Measure a checkpoint beside random weights and raw pixels.")
    p.add_argument("checkpoint")
    p.add_argument("--data", help="default: the data it was trained on")
    p.add_argument("--protocols", nargs="+", default=["knn", "linear"], choices=["knn", "linear", "finetune"])
    p.add_argument("--labels", nargs="+", default=["1.0", "0.01"], help="shares such as 0.01, or whole numbers per class such as 5")
    p.add_argument("--save", action="store_true", help="write the numbers into the card")
    hub(p)
    p = verb("reproduce", reproduce, "Recompute the numbers of a checkpoint's card and say whether they hold.")
    p.add_argument("checkpoint")
    hub(p)
    p = verb("report", report, "Write an HTML page of one or more checkpoints.")
    p.add_argument("checkpoints", nargs="+")
    p.add_argument("--out", default="report.html")
    hub(p)
    p = verb("pull", pull, "Bring a checkpoint from a hub, every file's sha256 checked, and print its folder.")
    p.add_argument("name")
    hub(p)
    p = verb("push", push, "Put a checkpoint into a hub.")
    p.add_argument("checkpoint")
    p.add_argument("--to", required=True, help="a folder, or hf://org/name")
    p.add_argument("--name", help="its name there; default the card's")
    p.add_argument("--license", help="SPDX name of the licence of the weights, written into the card")
    p.add_argument("--replace", action="store_true", help="replace what has that name")
    p = verb("verify", verify, "Hash a hub folder again, or the cache, and name what is damaged.")
    p.add_argument("target", nargs="?")
    p = verb("data", data, "List data sets, or get one.")
    p.add_argument("what", choices=["list", "get"])
    p.add_argument("name", nargs="?")
    p.add_argument("--from", dest="source", type=Path, help="a file or folder that holds the set, instead of its sources")
    p = verb("new-task", new_task, "Write the skeleton of a package with a pretext task.")
    p.add_argument("name")
    p.add_argument("--out", help="folder; default zoo-NAME")
    p = verb("quickstart", quickstart, "The whole path on Fashion-MNIST: pretrain, push, pull, adapt, report.")
    p.add_argument("--out", default="quickstart")
    p.add_argument("--steps", type=int, help="optimizer steps instead of the recipe's")
    p.add_argument("--no-progress", action="store_true")
    p = verb("completion", completion, "Print a completion script for a shell.")
    p.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return top


def main(words: list[str] | None = None) -> int:
    """Run a command line; returns its exit code: 0, 1 (a check failed), 2 (a mistake of the caller), 130 (interrupted)."""
    words = sys.argv[1:] if words is None else words
    parser = _parser()
    try:
        return _run(parser, words)
    except ZooError as error:
        print(f"zoo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("zoo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:                         # `zoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(parser: argparse.ArgumentParser, words: list[str]) -> int:
    if words[:1] and not words[0].startswith("-") and words[0] not in _PARSERS:
        raise ZooError(f"{words[0]!r} is not a verb of zoo{nearest(words[0], _PARSERS)}")
    given, rest = parser.parse_known_args(words)
    if given.version:
        from zoo import __version__

        print(__version__)
        return 0
    if given.verb is None:
        parser.print_help()
        return 0
    if given.verb == "pretrain":
        given.rest = rest
        if given.recipe is None:
            if given.help and not rest:
                _PARSERS["pretrain"].print_help()
                return 0
            raise ZooError("zoo pretrain needs a recipe; see zoo list recipes")
    elif rest:
        options = [option for action in _PARSERS[given.verb]._actions for option in action.option_strings]
        raise ZooError(f"zoo {given.verb} doesn't take {rest[0]!r}{nearest(rest[0], options)}")
    result = given.function(given)
    if given.json:
        print(json.dumps(result, ensure_ascii=False, default=str))
    return given.status


def _amount(word: str) -> float | int:
    try:
        return int(word) if word.isdigit() else float(word)
    except ValueError:
        raise ZooError(f"--labels {word!r} is neither a share such as 0.01 nor a number per class such as 5") from None


def _say(given: argparse.Namespace, text: str) -> None:
    if not given.json:
        print(text)


def _table(rows: list[dict]) -> None:
    """Columns as wide as they need to be; the last runs on."""
    if not rows:
        print("  none")
        return
    keys = [key for key, value in rows[0].items() if not isinstance(value, (dict, list))]
    widths = {key: max(len(str(row.get(key, ""))) for row in rows) for key in keys}
    for row in rows:
        line = "  ".join(str(row.get(key, "")).ljust(widths[key] if key != keys[-1] else 0) for key in keys)
        print(f"  {line.rstrip()}" + (f"   BROKEN: {row['problem']}" if row.get("problem") else ""))


if __name__ == "__main__":
    sys.exit(main())

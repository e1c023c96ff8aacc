"""Verbs that train, adapt, measure and report, and the one that begins a package."""

from __future__ import annotations

import argparse
from shlex import quote
from typing import Any

from zoo.verbs.printing import amount_of, plain, say


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
    say(
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
                "" if row["required"] or not row["type"] else plain(row["default"]),
                f"here {plain(row['value'])}" if row["value"] is not None and row["value"] != row["default"] else "",
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

    labels = 1.0 if given.labels is None else amount_of(given.labels)
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
    say(
        given,
        f"{given.mode} on {given.data} ({used}): {result.value:.1f} % on test"
        + (f"; the classifier is {result.folder}" if result.folder else ""),
    )
    for name, value in result.baselines.items():
        probe = " (linear probe)" if name == "pixels" and given.mode in TUNED else ""
        say(given, f"  {name + probe:<24}{value:5.1f} %")
    return asdict(result)


def evaluate(given: argparse.Namespace) -> Any:
    from zoo.evaluate.printed import print_table
    from zoo.evaluate.table import evaluate as run

    rows = run(
        given.checkpoint,
        given.data,
        protocols=tuple(given.protocols),
        labels=tuple(amount_of(word) for word in given.labels),
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
        say(given, f"{row['row']}: card {row['was']:.2f}, now {now}: {'holds' if row['holds'] else 'DOES NOT HOLD'}")
    given.status = 0 if all(row["holds"] for row in rows) else 1
    return rows


def report(given: argparse.Namespace) -> Any:
    from zoo.hub.hub import find
    from zoo.report.page import write_page

    path = write_page(given.out, [find(name, given.hub) for name in given.checkpoints])
    say(given, f"{path} is written")
    return {"page": str(path)}


def quickstart(given: argparse.Namespace) -> Any:
    from zoo.quickstart import quickstart as run

    return run(out=given.out, steps=given.steps, progress=not given.no_progress, resume=given.resume)


def new_task(given: argparse.Namespace) -> Any:
    from zoo.newtask import new_task as run

    folder = run(given.name, given.out, given.kind)
    say(
        given,
        f"{folder} is written. Install and test it with:\n  pip install -e {quote(str(folder))}\n  pytest "
        f"{quote(str(folder))}",
    )
    return {"folder": str(folder)}

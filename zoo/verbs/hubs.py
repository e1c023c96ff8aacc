"""Verbs that move checkpoints: to and from hubs, in from elsewhere, out to other runtimes."""

from __future__ import annotations

import argparse
from typing import Any

from zoo.errors import ZooError
from zoo.verbs.printing import say


def pull(given: argparse.Namespace) -> Any:
    from zoo.hub import hub

    folder = hub.pull(given.name, hub=given.hub)
    say(given, str(folder))
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
    say(given, found.sentence)
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
    say(given, found.sentence)
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
    from zoo.hub import push as pushing

    folder = hub.find(given.checkpoint)
    if given.license:
        from zoo.checkpoint.write import update_card

        update_card(folder, license=given.license)
    where = pushing.push(folder, given.to, name=given.name, replace=given.replace)
    say(given, f"pushed to {where}")
    return {"address": where}


def verify(given: argparse.Namespace) -> Any:
    from zoo.hub import hub

    problems = hub.verify(given.target)
    for problem in problems:
        say(given, problem)
    if not problems:
        say(given, "every file is what its card says")
    given.status = 1 if problems else 0
    return {"problems": problems}

"""From a recipe to a trained checkpoint."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from pathlib import Path
from typing import Any

from zoo import recipe as recipes
from zoo.card import short_name
from zoo.data.info import FOLDER, SHARDS
from zoo.errors import ZooError
from zoo.machine import ranks
from zoo.machine.devices import check_device, with_precision
from zoo.paths import expanded
from zoo.registry import find_task
from zoo.train import run_folder
from zoo.train.fit import (
    check_fit,
    for_smoke,
    networks,
    open_sources,
    weights_of,
    with_full_names,
    with_size,
    with_sources,
)
from zoo.train.run import _Run


def pretrain(
    recipe: str | Path | dict,
    out: str | Path | None = None,
    resume: bool = False,
    smoke: bool = False,
    logger: str = "csv",
    progress: bool = True,
    **overrides: Any,
) -> Path:
    """Run a recipe and write its checkpoint; returns the run's folder (its `checkpoint/` is what gets evaluated and
    pushed).

    Args:
        recipe: a file, the name of a recipe that came with the zoo, or a mapping.
        out: the run's folder. One that holds a run is refused unless `resume`. By default runs/<recipe>-s<seed>, with
            -smoke behind it for such, and -2, -3, ... where other runs have taken it.
        resume: go on from the newest saved state whose checksum holds; without `out`, in the newest of those folders
            that this recipe has. What neither the recipe nor `overrides` say is as the run was begun with.
        smoke: two tiny steps on generated data, to see that everything fits together.
        logger: csv, tensorboard, wandb or none.
        progress: draw a progress bar.
        overrides: recipe keys, as `task={"temperature": 0.1}` or `**{"task.temperature": 0.1}`.

    Raises ZooError for everything a recipe can get wrong, before any training.
    """
    name = Path(recipe).stem if not isinstance(recipe, dict) else "recipe"
    values = recipe if isinstance(recipe, dict) else recipes.read(recipe)
    changes = dict(recipes.flat(overrides))
    resolved, given = recipes.resolve(values, changes), dict(recipes.flat(values)).keys() | changes.keys()
    task = find_task(resolved["task"]["name"])
    resolved = with_full_names(resolved, task)
    if smoke:
        resolved = for_smoke(resolved)
    if isinstance(recipe, dict):
        weights, found = weights_of(resolved, task), networks(resolved, task)
        words = [
            resolved["task"]["name"],
            *(network.get("name") or Path(weights[tower]).name for tower, network in found.items()),
            short_name(resolved["data"]["name"]),
        ]
        name = "-".join(words)
    name = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:100] or "recipe"  # one that a card can have
    info = check_fit(resolved)
    sources = {} if resume else open_sources(resolved, task)
    resolved = resolved if resume else with_size(with_sources(resolved, task, sources, info), info)
    lowers = {
        "trainer.precision",
        *(["data.batch_size"] if info.name.startswith((FOLDER, SHARDS)) else []),
    } - changes.keys()
    asked = {key: value for key, value in recipes.flat(resolved) if key in lowers}
    if out is not None and not str(out).strip():
        raise ZooError("out is empty; give a folder, or leave it out")
    folder = (
        expanded(out) if out is not None else Path("runs") / f"{name}-s{resolved['seed']}{'-smoke' if smoke else ''}"
    )
    if resume:
        folder = folder if out is not None else run_folder.newest(folder, resolved, lowers)
        resolved = with_size(run_folder.begun_with(folder, resolved, given, lowers), info)
    elif "trainer.precision" in lowers:
        resolved = with_precision(resolved)
    check_device(**{key: resolved["trainer"][key] for key in ("accelerator", "precision", "devices")})
    with contextlib.ExitStack() as until_the_end, _quiet():
        if (
            ranks.rank(resolved["trainer"]["devices"], resolved["trainer"]["nodes"]) == 0
        ):  # the first process writes; the others come after it
            if out is None and not resume:
                folder, alone = until_the_end.enter_context(run_folder.chosen(folder, resolved, lowers))
            else:
                alone = until_the_end.enter_context(run_folder.held(folder, make=not resume))
            run_folder.claim(folder, resolved, resume, alone)
        return _Run(name, resolved, folder, info, smoke, asked, sources).train(resume, logger, progress)


@contextlib.contextmanager
def _quiet():
    """Lightning's greetings and tips are for people who drive Lightning themselves, and its use of torch is for its
    makers.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec")
            warnings.filterwarnings(
                "ignore", message="It is recommended to use .self.log.*sync_dist=True"
            )  # one rank alone looked
            warnings.filterwarnings(
                "ignore", message="Found .* module.s. in eval mode at the start of training"
            )  # teachers are meant to be
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

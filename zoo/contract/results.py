"""What comes of a task: features, pictures, a loss that falls, and a checkpoint that loads as it was."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path

import torch

from zoo.checkpoint.describe import data_entry, new_card
from zoo.checkpoint.write import export
from zoo.contract.promise import equal, promise
from zoo.contract.small import CPU, IMAGES, SIZES, batch_of, info_of, make, run, views_of
from zoo.draws import Draw, counted
from zoo.grid import is_picture
from zoo.tasks.base import PretextTask
from zoo.tasks.load import load_task
from zoo.tasks.output import kind_of

STEPS = 40  # in which the loss of the fixed batch has to fall
FALL = 0.02  # of the first loss, at least


def check_features(task: PretextTask, batch: dict) -> None:
    twin = copy.deepcopy(task).eval()
    with torch.no_grad():
        found = twin.represent(batch)
    promise(
        any(tower in found for tower in task.towers),
        f"features gives no representation called {' or '.join(task.towers)}",
    )
    for name, x in found.items():
        promise(
            x.ndim == 2 and len(x) == len(batch["index"]) and bool(x.isfinite().all()),
            f"features[{name!r}] is {tuple(x.shape)}; it is finite (B, D)",
        )


def check_pictures(task: PretextTask, batch: dict) -> None:
    twin = copy.deepcopy(task).eval()
    with torch.no_grad(), counted(CPU, Draw.VALIDATION, 0):
        drawn = twin.figure(batch)
    promise(isinstance(drawn, dict), f"picture gave a {type(drawn).__name__}; it is a dict of pictures by name")
    for name, image in drawn.items():
        if isinstance(image, str):
            continue
        promise(is_picture(image), f"the picture {name!r} is {kind_of(image)}; it is float (3, H, W)")
        promise(bool(((image >= 0) & (image <= 1)).all()), f"the picture {name!r} has values outside 0 to 1, or NaN")


def check_sizes(task: type[PretextTask], keywords: dict, arguments: dict) -> None:
    """The smallest batch there is and, of a task that sees images, another size and grey images."""
    cases = [(SIZES[0], 2, 3)]
    if "image" in task.towers.values():
        cases += [(SIZES[1], IMAGES, 3)] + ([] if task.needs_colour else [(SIZES[0], 4, 1)])
    for size, images, channels in cases:
        seen = f" of {size} pixels and {channels} channel(s)" if "image" in task.towers.values() else ""
        what = f"{images} {'pictures' if seen else 'samples'}{seen}"
        try:
            loss = run(make(task, keywords, size, arguments), batch_of(task, size, images, channels)).loss
        except (RuntimeError, ValueError, IndexError) as error:
            raise AssertionError(f"{task.__name__} doesn't work on {what}: {error}") from error
        promise(bool(loss.isfinite()), f"the loss is {loss.item()} on {what}")


def check_learns(task: PretextTask, batch: dict) -> PretextTask:
    """The loss of one fixed batch, with fixed views, falls. Returns what has learned it."""
    twin = copy.deepcopy(task)
    views = views_of(twin, batch)
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(STEPS):
        output = twin(views)
        losses.append(output.loss.item())
        promise(math.isfinite(losses[-1]), f"the loss is {losses[-1]} after {step} steps on one batch")
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        with torch.no_grad():
            twin.after_step((step + 1) / STEPS)
    promise(
        min(losses) < losses[0] - FALL * abs(losses[0]),
        f"the loss of one fixed batch goes from {losses[0]:.4g} to no less than {min(losses):.4g} "
        f"in {STEPS} steps, so nothing is learned",
    )
    return twin


def check_export(task: PretextTask, batch: dict) -> None:
    """What is exported and loaded again has the same features, to the last bit."""
    twin = copy.deepcopy(task).eval()
    card = new_card("contract", "", data_entry(info_of(type(task), SIZES[0]), ""))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        loaded = load_task(export(twin, Path(folder) / "checkpoint", card))
        before, after = twin.represent(batch), loaded.represent(batch)
    promise(
        before.keys() == after.keys(),
        f"after export and loading the features are {sorted(after)}, before {sorted(before)}",
    )
    for name in before:
        promise(
            torch.equal(before[name], after[name]),
            f"features[{name!r}] differ after export and loading: some state is not in the checkpoint",
        )
    promise(equal(twin.heads(), loaded.heads()), "the heads differ after export and loading")

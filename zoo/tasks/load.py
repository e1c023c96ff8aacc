"""The pretext task of a checkpoint, with its backbones and heads."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from zoo import card as cards
from zoo.checkpoint.files import HEADS, fill_exactly
from zoo.checkpoint.read import bounded, read_backbone
from zoo.errors import ZooError
from zoo.tasks.base import PretextTask
from zoo.tasks.create import create_task


def load_task(folder: str | Path, card: dict | None = None) -> PretextTask:
    """The pretext task with backbones and heads as they were at the end of training, in eval mode.

    Teachers, queues and the like are as at the beginning: only the resumable state of a run has them. Raises ZooError
    for a damaged or foreign checkpoint. `card` is its card where that has been read already.
    """
    folder = Path(folder)
    card = cards.read_card(folder) if card is None else card
    arguments = dict(card["task"])
    towers = {name: read_backbone(folder, card, name) for name in cards.towers_of(card)}
    states = {name: copy.deepcopy(backbone.model.state_dict()) for name, backbone in towers.items()}
    try:
        with torch.random.fork_rng(devices=[]), bounded(folder, card):
            task = create_task(arguments.pop("name"), towers=towers, **arguments)
    except ZooError as error:
        raise ZooError(f"{folder / cards.FILE}: {error}") from error
    for name, backbone in task.tower.items():  # a constructor may have drawn some of its weights again
        backbone.model.load_state_dict(states[name])
    fill_exactly(task, task.heads(), cards.read_file(folder, card, HEADS), str(folder / HEADS))
    task.seed = card["seed"]
    return task.eval()

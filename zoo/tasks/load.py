"""The pretext task of a checkpoint, with its backbone and heads."""

from __future__ import annotations

from pathlib import Path

import torch

from zoo import card as cards
from zoo.card import read_card
from zoo.checkpoint.files import HEADS
from zoo.checkpoint.read import bounded, fill, read_backbone
from zoo.errors import ZooError
from zoo.tasks.base import PretextTask
from zoo.tasks.create import create_task


def load_task(folder: str | Path) -> PretextTask:
    """The pretext task with backbone and heads as they were at the end of training, in eval mode. Teachers, queues and
    the like
    are as at the beginning: only the resumable state of a run has them. Raises ZooError for a damaged or foreign
    checkpoint.
    """
    folder = Path(folder)
    card = read_card(folder)
    arguments, backbone = dict(card["task"]), read_backbone(folder, card)
    try:
        with torch.random.fork_rng(devices=[]), bounded(folder, card):
            task = create_task(arguments.pop("name"), backbone, **arguments)
    except ZooError as error:
        raise ZooError(f"{folder / cards.FILE}: {error}") from error
    fill(task, task.heads(), folder, card, HEADS)
    task.seed = card["seed"]
    return task.eval()

"""Stands for the task of weights that came from elsewhere."""

from __future__ import annotations

from torch import nn

from zoo.errors import ZooError
from zoo.registry import IMPORTED
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput


class Imported(PretextTask):
    """Stands for the task that an imported backbone was trained by, of which nothing is left. It can be adapted and
    measured, not trained.
    """

    name = IMPORTED

    def __init__(self, backbone: nn.Module):
        super().__init__(backbone)

    def views(self, batch: dict) -> tuple:
        raise ZooError(
            "an imported backbone has no pretext task that could be trained; name one in a recipe, or adapt it"
        )

    def forward(self, views: tuple) -> TaskOutput:
        raise ZooError("an imported backbone has no loss")

"""PretextTask: what every pretext task promises, and nothing that one task alone needs.

Letters, used in every docstring: B batch, V views, N tokens, P prefix tokens, D features, M code, C H W image, T text
length, K classes.

In the figures at the top of task files --> is followed by the gradient and ..> isn't.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from zoo.backbones.base import Backbone
from zoo.errors import ZooError
from zoo.optim import Optim
from zoo.ranges import check_ranges
from zoo.tasks.fitting import Fitting
from zoo.tasks.output import TaskOutput, kind_of
from zoo.views import to_float

__all__ = ["PretextTask", "TaskOutput"]


class PretextTask(Fitting, ABC):
    """A pretext task: views made from a batch, and a loss computed from views.

    A task writes `views` and `forward`, and overrides `after_step`, `figure`, `features` or `represent` where it
    differs. Its constructor takes its backbones and plain typed values, and calls `super().__init__(backbone)` once.
    How a task is trained (`seed`, `optim`) are attributes, set by `zoo.pretrain` or by hand.

    name           set by the registration
    needs          fields of a batch that the task reads
    towers         its backbones: argument of the constructor -> the kind that the backbone reads (image, text, audio)
    needs_colour   whether grey images are refused
    training_only  teachers, queues, centres: attributes whose state is resumed, and left out of checkpoints
    """

    name: str = ""
    needs: tuple[str, ...] = ("image",)
    towers: dict[str, str] = {"backbone": "image"}
    needs_colour: bool = False
    training_only: tuple[str, ...] = ()
    seed: int = 0
    optim: Optim = Optim()
    is_pretext_task = False  # True for every class that inherits from this one

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.is_pretext_task = True
        if "picture" in vars(cls) and "figure" not in vars(cls):  # the method's name in plugins written for 0.1
            cls.figure = cls.picture
        if cls.__init__ is PretextTask.__init__:
            cls.__init__ = _constructor(tuple(cls.towers))

    def __new__(cls, *args, **kwargs):
        task = super().__new__(cls)
        if args or kwargs:  # neither when copied or unpickled
            bound = inspect.signature(cls.__init__).bind(None, *args, **kwargs)
            bound.apply_defaults()
            plain = {key: value for key, value in list(bound.arguments.items())[1:] if key not in cls.towers}
            check_ranges(cls.__init__, plain, "task")
            object.__setattr__(task, "arguments", plain)
        return task

    def __init__(self, *backbones: Backbone):
        """`backbones` in the order of `towers`, each of which becomes an attribute of that name."""
        super().__init__()
        self.arguments: dict[str, Any]
        if len(backbones) != len(self.towers):
            raise ZooError(
                f"the task {self.name or type(self).__name__} gives {len(backbones)} backbones to super().__init__; "
                f"its towers are {', '.join(self.towers)}"
            )
        for tower, backbone in zip(self.towers, backbones, strict=True):
            if not isinstance(backbone, Backbone):
                raise ZooError(
                    f"a task takes a backbone that zoo.create_backbone made, and this is {kind_of(backbone)}"
                )
            if backbone.reads != self.towers[tower]:
                raise ZooError(
                    f"the tower {tower} of the task {self.name or type(self).__name__} reads {self.towers[tower]}, and "
                    f"{backbone.name} reads {backbone.reads}"
                )
            setattr(self, tower, backbone)

    # ---- what a task writes ----------------------------------------------------------------------
    @abstractmethod
    def views(self, batch: dict) -> tuple:
        """Everything random: crops, masks, noise, cooked targets. Runs without gradient and without autocast."""

    @abstractmethod
    def forward(self, views: tuple) -> TaskOutput:
        """The loss of the views. Draws nothing (but for dropout inside the backbone); autocast may be on."""

    def after_step(self, progress: float) -> None:
        """For what follows the weights, such as a teacher. `progress` ends at exactly 1."""

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """Float images (B, C, H, W) in [0, 1] -> the representations that are evaluated, by name, each (B, D)."""
        return {"backbone": self.backbone.pool(image)}

    def represent(self, batch: dict) -> dict[str, Tensor]:
        """A batch -> the representations that are evaluated, by name, each (B, D). The first name is a tower's.

        A tower whose field the batch lacks is left out.
        """
        if self.towers == {"backbone": "image"}:
            return self.features(to_float(batch["image"]))
        return {
            tower: backbone.pool(backbone.prepare(batch[backbone.field]))
            for tower, backbone in self.tower.items()
            if backbone.field in batch
        }

    def figure(self, batch: dict) -> dict[str, Tensor | str]:
        """What the task predicts, for people to look at: name -> (3, H, W) float in [0, 1], or text."""
        return {}

    def picture(self, batch: dict) -> dict[str, Tensor | str]:
        """Another name of `figure`, for plugins written for 0.1."""
        return self.figure(batch)

    # ---- what others ask of it -------------------------------------------------------------------
    @property
    def uses_labels(self) -> bool:
        return "label" in self.needs

    @property
    def tower(self) -> dict[str, Backbone]:
        """The backbones by the names of `towers`."""
        return {name: getattr(self, name) for name in self.towers}

    @property
    def first_tower(self) -> str:
        """The tower whose weights lie at the top of a checkpoint: the first that reads images, or else the first."""
        return next((name for name, kind in self.towers.items() if kind == "image"), next(iter(self.towers)))

    def heads(self) -> dict[str, Tensor]:
        """State of everything that a checkpoint carries beside the backbones."""
        skipped = (*self.towers, *self.training_only)
        return {key: value for key, value in self.state_dict().items() if key.split(".")[0] not in skipped}


def _constructor(towers: tuple[str, ...]) -> Callable[..., None]:
    """The `__init__` of a task that writes none: it takes the towers by name, and nothing else, so that a recipe can
    read its signature.
    """

    def __init__(self, *backbones: Backbone, **named: Backbone) -> None:  # noqa: N807
        PretextTask.__init__(self, *backbones, *(named[tower] for tower in towers if tower in named))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    __init__.__signature__ = inspect.Signature(
        [inspect.Parameter("self", kind), *(inspect.Parameter(tower, kind, annotation=Backbone) for tower in towers)]
    )
    __init__.__annotations__ = dict.fromkeys(towers, Backbone)
    return __init__

"""What a task says of itself: its class, its arguments, and the fields it reads."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

from zoo.contract.promise import promise
from zoo.errors import ZooError
from zoo.registry import declared_name, find_task
from zoo.signatures import check_signature
from zoo.tasks.base import PretextTask

FIELDS = ("image", "label", "text", "tokens", "audio", "frames", "factors")
OURS = (
    "training_step",
    "validation_step",
    "predict_step",
    "configure_optimizers",
    "optimizer_step",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "train_dataloader",
    "backward",
    "on_train_epoch_start",
    "on_validation_epoch_start",
)


def class_of(task: Any) -> Any:
    """The class of a name; a class that only an entry point names is registered by that."""
    name = task if isinstance(task, str) else None
    if isinstance(task, type) and issubclass(task, PretextTask) and not task.name:
        name = declared_name(task)
    try:
        return task if name is None else find_task(name)
    except ZooError as error:
        raise AssertionError(str(error)) from error


def check_class(task: type) -> None:
    if not (isinstance(task, type) and issubclass(task, PretextTask)):
        raise AssertionError(f"{task!r} is not a class that inherits from zoo.PretextTask")
    who = task.__name__
    promise(
        bool(task.name), f'{who} has no name; decorate it with @register_task("its-name"), or name it in an entry point'
    )
    promise(find_task(task.name) is task, f"zoo knows another class under the name {task.name}")
    parents = [base.__name__ for base in task.__mro__[1:] if issubclass(base, PretextTask) and base is not PretextTask]
    promise(not parents, f"{who} inherits from {' and '.join(parents)}; a task inherits from PretextTask alone")
    docs = f"{task.__doc__ or ''} {sys.modules[task.__module__].__doc__ or ''}"
    promise(
        re.search(r"https?://\S+\.\S+", docs) is not None,
        f"neither the docstring of {who} nor its module's has a link to where the idea is from",
    )
    taken = [name for name in OURS if name in vars(task)]
    promise(not taken, f"{who} defines {' and '.join(taken)}; how a task is trained belongs to PretextTask")
    promise(
        isinstance(task.needs, tuple) and all(kind in task.needs for kind in task.towers.values()),
        f"{who}.needs is {task.needs!r}; it is a tuple of fields, {' and '.join(task.towers.values())} among them",
    )
    try:
        check_signature(task)
    except ZooError as error:
        raise AssertionError(str(error)) from error


def check_construction(task: PretextTask, given: dict) -> None:
    who = type(task).__name__
    signature = inspect.signature(type(task).__init__).parameters
    wanted = {
        key: given.get(key, parameter.default)
        for key, parameter in list(signature.items())[1:]
        if key not in task.towers
    }
    promise(
        task.arguments == wanted,
        f"{who}.arguments is {task.arguments}, not its constructor's; leave that attribute alone",
    )
    promise(not task.hparams, f"{who} saves hyperparameters; its arguments are kept for it")
    unknown = [name for name in task.training_only if not any(key.split(".")[0] == name for key in task.state_dict())]
    promise(not unknown, f"{who}.training_only names {unknown}, of which there is no state")


@contextlib.contextmanager
def fields_needed(task: type[PretextTask]) -> Iterator[None]:
    """A field that a batch lacks was not asked for."""
    try:
        yield
    except KeyError as error:
        if error.args[0] not in FIELDS:
            raise
        raise AssertionError(
            f"{task.__name__} reads {error} of a batch, which its needs {task.needs} don't name"
        ) from error

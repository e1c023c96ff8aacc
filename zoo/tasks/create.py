"""A pretext task by its registered name."""

from __future__ import annotations

import inspect
from typing import Any

from zoo import registry
from zoo.backbones import Backbone
from zoo.errors import UNFIT, ZooError, because, nearest
from zoo.tasks.base import PretextTask


def create_task(
    name: str, backbone: Backbone | None = None, *, towers: dict[str, Backbone] | None = None, **arguments: Any
) -> PretextTask:
    """A pretext task by its registered name.

    Args:
        name: see `zoo list tasks`.
        backbone: the network of a task that has one.
        towers: the networks of a task that has several, by the names of its `towers`.
        arguments: the task's own.

    Raises ZooError for an unknown name or argument, for towers that the task doesn't have or lacks, and for arguments
    that the task can't be made with.
    """
    task = registry.find_task(name)
    given = _towers_given(name, task, backbone, towers)
    parameters = inspect.signature(task.__init__).parameters
    known = [key for key in parameters if key not in ("self", *task.towers)]
    for key in arguments:
        if key not in known:
            raise ZooError(f"{key} is not an argument of the task {name}{nearest(key, known)}")
    try:
        return task(**given, **arguments)
    except ZooError:
        raise
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        origin = "zoo" if name == registry.IMPORTED else registry.task_entry(name).origin
        ours = origin in ("zoo", "this session")
        if isinstance(error, KeyboardInterrupt) or (ours and not isinstance(error, UNFIT)):
            raise
        changed = {key: value for key, value in arguments.items() if value != parameters[key].default}
        networks = " and ".join(getattr(made, "name", str(made)) for made in given.values())
        raise ZooError(
            f"the task {name}{'' if ours else f' of {origin}'} can't be made with {changed or 'its defaults'} and the "
            f"backbone {networks}: {because(error)}"
        ) from error


def _towers_given(
    name: str, task: type[PretextTask], backbone: Backbone | None, towers: dict[str, Backbone] | None
) -> dict[str, Backbone]:
    """The networks by the names of the task's towers. Raises ZooError unless every tower has exactly one."""
    wanted = list(task.towers)
    if towers is None:
        if len(wanted) == 1:
            return {wanted[0]: backbone}
        raise ZooError(
            f"the task {name} has the towers {' and '.join(wanted)}; give towers={{"
            + ", ".join(f"{tower!r}: ..." for tower in wanted)
            + "}, each made by zoo.create_backbone"
        )
    if backbone is not None:
        raise ZooError(f"backbone and towers are two ways to give the task {name} its networks; give one of them")
    for tower in towers:
        if tower not in wanted:
            raise ZooError(f"{tower} is not a tower of the task {name}{nearest(tower, wanted)}")
    if missing := [tower for tower in wanted if tower not in towers]:
        raise ZooError(f"the task {name} lacks its tower {missing[0]}; its towers are {' and '.join(wanted)}")
    return {tower: towers[tower] for tower in wanted}

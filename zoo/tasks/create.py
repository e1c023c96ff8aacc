"""A pretext task by its registered name."""

from __future__ import annotations

import inspect

from zoo.backbones import Backbone
from zoo.errors import UNFIT, ZooError, because, nearest
from zoo.tasks.base import PretextTask


def create_task(name: str, backbone: Backbone, **arguments) -> PretextTask:
    """A pretext task by its registered name. Raises ZooError for an unknown name or argument, and for arguments that it
    can't be made with.
    """
    from zoo import registry

    task = registry.find_task(name)
    parameters = inspect.signature(task.__init__).parameters
    known = [key for key in parameters if key not in ("self", "backbone")]
    for key in arguments:
        if key not in known:
            raise ZooError(f"{key} is not an argument of the task {name}{nearest(key, known)}")
    try:
        return task(backbone, **arguments)
    except ZooError:
        raise
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        origin = "zoo" if name == registry.IMPORTED else registry.task_entry(name).origin
        ours = origin in ("zoo", "this session")
        if isinstance(error, KeyboardInterrupt) or (ours and not isinstance(error, UNFIT)):
            raise
        given = {key: value for key, value in arguments.items() if value != parameters[key].default}
        raise ZooError(
            f"the task {name}{'' if ours else f' of {origin}'} can't be made with {given or 'its defaults'} and the "
            f"backbone {backbone.name}: "
            f"{because(error)}"
        ) from error

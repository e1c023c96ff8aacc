"""The pretext zoo: pretext tasks as plugins, recipes, checkpoints that timm loads, and what they are worth.

Public names are resolved when they are first used, so that importing `zoo` imports no torch and changes nothing in the
process.
"""

from __future__ import annotations

import importlib
import sys
import types

__version__ = "0.1.0"

_PUBLIC = {
    "list_tasks": "zoo.registry",
    "list_backbones": "zoo.backbones.names",
    "register_task": "zoo.registry",
    "list_data": "zoo.data.datasets",
    "load_data": "zoo.data.datasets",
    "create_data": "zoo.data.module",
    "create_backbone": "zoo.backbones",
    "create_task": "zoo.tasks.create",
    "PretextTask": "zoo.tasks.base",
    "TaskOutput": "zoo.tasks.base",
    "load": "zoo.checkpoint.read",
    "import_checkpoint": "zoo.importing",
    "export_checkpoint": "zoo.checkpoint.runtime",
    "list_checkpoints": "zoo.hub.hub",
    "pull": "zoo.hub.hub",
    "push": "zoo.hub.push",
    "ZooError": "zoo.errors",
}
# Verbs that share their name with the module they live in: the module itself can be called.
_VERBS = {
    "pretrain": "zoo.pretrain:pretrain",
    "adapt": "zoo.adapt:adapt",
    "evaluate": "zoo.evaluate.table:evaluate",
    "report": "zoo.report.page:write_page",
    "quickstart": "zoo.quickstart:quickstart",
}

__all__ = ["__version__", *_PUBLIC, *_VERBS]


class _Verb(types.ModuleType):
    def __call__(self, *args, **kwargs):
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self):  # the function itself: inspect and help() look for it under this name
        module, _, function = _VERBS[self.__name__.removeprefix("zoo.")].partition(":")
        return getattr(importlib.import_module(module), function)


class _Zoo(types.ModuleType):
    def __setattr__(self, name, value):  # Python sets a submodule on its package as soon as it is imported
        if name in _VERBS and type(value) is types.ModuleType:
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Zoo


def __getattr__(name: str):
    if name in _VERBS or name in _PUBLIC:
        from zoo.plugins import naming_damage

        with naming_damage():
            return (
                importlib.import_module(f"zoo.{name}")
                if name in _VERBS
                else getattr(importlib.import_module(_PUBLIC[name]), name)
            )
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

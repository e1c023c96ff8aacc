"""Checkpoints: folders of safetensors and JSON, written and read.

Names that 0.1 had here are found where they lie now.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "export": "zoo.checkpoint.write",
    "update_card": "zoo.checkpoint.write",
    "load": "zoo.checkpoint.read",
    "load_backbone": "zoo.checkpoint.read",
    "load_task": "zoo.tasks.load",
    "read_card": "zoo.card",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'zoo.checkpoint' has no attribute {name!r}")

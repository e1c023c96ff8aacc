"""Networks that a pretext task trains; `create_backbone` makes one by name.

Both names are resolved when they are first used, because `zoo.backbones.names` serves listings, which import no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.backbones.base import Backbone
    from zoo.backbones.create import create_backbone

__all__ = ["Backbone", "create_backbone"]

_HOMES = {"Backbone": "zoo.backbones.base", "create_backbone": "zoo.backbones.create"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zoo.backbones' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

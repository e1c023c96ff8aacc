"""Networks that a pretext task trains; `create_backbone` makes one by name."""

from zoo.backbones.base import Backbone
from zoo.backbones.create import create_backbone

__all__ = ["Backbone", "create_backbone"]

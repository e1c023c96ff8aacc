"""Networks that a pretext task trains; `create_backbone` makes one by name."""

from zoo.backbones.image import Backbone, create_backbone

__all__ = ["Backbone", "create_backbone"]

"""What a task returns from `forward`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from zoo.grid import is_picture


@dataclass
class TaskOutput:
    """`loss` is the scalar to minimise; `logs` holds its named terms and whatever else is worth a curve (scalars)."""

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


def kind_of(value: Any) -> str:
    """What somebody gave, for a sentence: a tensor by its shape, all else by its type."""
    return (
        f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )


def wrong_figure(figures: Any) -> str | None:
    """What a task's `figure` gave that isn't (3, H, W) floats or text by name, for a sentence; None if all is well."""
    if not isinstance(figures, dict):
        return kind_of(figures)
    for name, figure in figures.items():
        if not isinstance(name, str) or not (isinstance(figure, str) or is_picture(figure)):
            return f"{kind_of(figure)} for {name!r}"
    return None

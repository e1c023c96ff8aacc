"""What a task returns from `forward`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


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

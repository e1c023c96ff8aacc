"""What every backbone promises, whatever it reads.

Letters: B batch, N tokens, P prefix tokens (class, registers), D features, C H W image, T text length, S audio samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """A network that a pretext task trains, whose pooled features are the representation.

    reads         kind of the field it reads: image, text, tokens, audio or frames
    field         name of that field in a batch; by default the kind
    name          as `create_backbone` knows it
    arguments     plain keywords that `create_backbone` made it with, beside the name and what the data say
    origin        who makes it: "zoo", or the distribution and version of a plugin; set by `create_backbone`
    model         the network of the library it comes from; its weights are what a checkpoint holds
    num_features  D of `pool`
    grid          patches per axis, such as (4, 4) of an image or (T,) of text; None where there are no patches
    """

    reads: str
    name: str
    arguments: dict[str, Any]
    origin: str = "zoo"
    model: nn.Module
    num_features: int
    grid: tuple[int, ...] | None = None

    @property
    def field(self) -> str:
        return self.reads

    @property
    def needs_learning(self) -> bool:
        """Whether `learn` has to be called before training, as for a network without a tokenizer."""
        return False

    def learn(self, values: Any) -> Any:
        """Learn from the training split's values of `field` what isn't a weight, such as a tokenizer."""
        return None

    def take_learned(self, other: Backbone) -> None:
        """Take what `learn` gave to `other`, the same network with other weights."""

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks of a transformer, first to last; none of other networks."""
        return list(getattr(self.model, "blocks", []))

    @abstractmethod
    def prepare(self, values: Any) -> Any:
        """The field of a batch -> the input of `pool`, on the backbone's device. Draws nothing."""

    @abstractmethod
    def pool(self, x: Any) -> Tensor:
        """What `prepare` gives -> the representation (B, D)."""

    @abstractmethod
    def example(self, count: int) -> Any:
        """`count` samples of the field that it reads, without any content, to try the network with."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Plain keywords of `create_backbone` that make this network again, those that the data gave included."""

    def forward(self, x: Any) -> Tensor:
        return self.pool(x)

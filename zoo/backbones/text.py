"""Text backbones: a network of `transformers` without a head, and the tokenizer in front of it.

Letters: B batch, T text length in tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.architectures import ARCHITECTURES, TEXT_ARGUMENTS, Architecture, Plain
from zoo.backbones.base import Backbone
from zoo.backbones.plain import check_plain
from zoo.backbones.tokenizer import LEARNED, LEARNED_IDS, Tokenizer, check_learnable, learn_tokenizer, read_tokenizer
from zoo.errors import UNFIT, ZooError, because, nearest

SHORTEST = 4  # tokens: those around a text, and two of its own
MOST = {"length": 1 << 16, "vocabulary": 1 << 21}  # largest values
MOST_ELSE = 1 << 16  # of every other keyword
POOLINGS = ("mean", "cls")
RENAMED = {"vocab_size": "vocabulary", "max_position_embeddings": "length", "n_positions": "length"}


class TextBackbone(Backbone):
    """A network of `transformers` that reads texts.

    Its input is a dict of int64 tensors (B, T), `input_ids` and `attention_mask`; T is always `length`. Every method
    takes what `prepare` returns. `tokenizer` is None until it is given or learned.
    """

    reads = "text"

    def __init__(
        self,
        model: nn.Module,
        name: str,
        arguments: dict[str, Plain],
        length: int,
        configuration: dict[str, Any],
        tokenizer: Tokenizer | None,
    ):
        super().__init__()
        self.configuration = dict(configuration)  # what the network was made with, by transformers' names
        self.model, self.name, self.arguments = model, name, dict(arguments)
        self.length, self.grid = length, (length,)
        self.vocabulary = int(arguments["vocabulary"])
        self.pooling = str(arguments.get("pooling", "mean"))
        self.num_features: int = model.config.hidden_size
        self.tokenizer: Tokenizer | None = None
        if tokenizer is not None:
            self.use(tokenizer)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.get_submodule(ARCHITECTURES[self.name].blocks))

    @property
    def needs_learning(self) -> bool:
        return self.tokenizer is None

    @property
    def tokenizer_kind(self) -> str:
        """wordpiece, bpe, words or unigram: what `learn` learns, or the kind of the tokenizer that was given."""
        return str(self.arguments.get("tokenizer", LEARNED[0]))

    def learn(self, values: Sequence[str]) -> Tokenizer:
        """Learn the tokenizer from texts, those of the training split, and use it. The same texts give the same
        tokenizer. Raises ZooError for texts without any text, and where a tokenizer is there already.
        """
        if self.tokenizer is not None:
            raise ZooError(f"the backbone {self.name} has a tokenizer already, and its weights belong to that one")
        self.use(learn_tokenizer(values, self.vocabulary, self.tokenizer_kind))
        return self.tokenizer

    def take_learned(self, other: TextBackbone) -> None:
        self.use(other.tokenizer)

    def use(self, tokenizer: Tokenizer) -> None:
        """Tokenize with `tokenizer` from now on. Raises ZooError for one with more tokens than the embedding has rows,
        and for one whose padding has another number than the network's.
        """
        if tokenizer.size > self.vocabulary:
            raise ZooError(
                f"the tokenizer {tokenizer.where} numbers its tokens up to {tokenizer.size - 1}, and the embedding of "
                f"{self.name} has {self.vocabulary} rows; set backbone.vocabulary to {tokenizer.size} or more"
            )
        if tokenizer.kind != self.tokenizer_kind:
            raise ZooError(
                f"the tokenizer {tokenizer.where} is of the kind {tokenizer.kind}, and {self.name} was made for "
                f"{self.tokenizer_kind} (backbone.tokenizer)"
            )
        if (pad := tokenizer.id("pad") or 0) != (self.model.config.pad_token_id or 0):
            raise ZooError(
                f"the tokenizer {tokenizer.where} numbers its padding {pad}, and {self.name} was made for "
                f"{self.model.config.pad_token_id}; give the tokenizer when the backbone is made"
            )
        self.tokenizer = tokenizer

    def prepare(self, values: Sequence[str]) -> dict[str, Tensor]:
        """B texts -> `input_ids` and `attention_mask`, (B, T) int64 each, on the backbone's device.

        Longer texts are cut to T tokens; an empty text has the special tokens alone. Raises ZooError for values that
        are no texts, and for texts before there is a tokenizer.
        """
        if self.tokenizer is not None:
            ids, attended = self.tokenizer.encode(values, self.length)
        elif any(values):
            raise ZooError(f"the backbone {self.name} has no tokenizer yet; call its learn(texts) with training texts")
        else:  # no text at all needs no tokenizer
            ids = torch.zeros(len(values), self.length, dtype=torch.int64)
            attended = torch.zeros_like(ids)
            attended[:, 0] = 1
        device = next(self.model.parameters()).device
        return {"input_ids": ids.to(device), "attention_mask": attended.to(device)}

    def example(self, count: int) -> list[str]:
        """Empty texts."""
        return [""] * count

    def spec(self) -> dict[str, Any]:
        """Keywords of `create_backbone` for the same network; the tokenizer itself is a file of the checkpoint."""
        return {"name": self.name, **self.arguments, "length": self.length}

    def tokens(self, x: dict[str, Tensor], mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """What `prepare` gives -> (B, T, D), the padding's tokens included, after the last norm.

        Where `mask` (B, T) bool is true, the token's embedding is replaced by `mask_token` (D,) before positions are
        added.
        """
        hook = (
            None
            if mask is None
            else self.model.get_input_embeddings().register_forward_hook(
                lambda module, given, out: torch.where(mask.unsqueeze(-1), mask_token.to(out.dtype), out)
            )
        )
        try:
            return self.model(**x).last_hidden_state
        finally:
            if hook is not None:
                hook.remove()

    def pooled(self, tokens: Tensor, x: dict[str, Tensor]) -> Tensor:
        """(B, T, D) of `tokens(x)`, and x -> (B, D): `pooled(tokens(x), x)` is `pool(x)`."""
        if self.pooling == "cls":
            return tokens[:, 0]
        attended = x["attention_mask"].unsqueeze(-1).to(tokens.dtype)
        return (tokens * attended).sum(1) / attended.sum(1)

    def pool(self, x: dict[str, Tensor]) -> Tensor:
        """What `prepare` gives -> (B, D): the mean over the tokens that are no padding, or with `pooling: cls` the
        first token.
        """
        return self.pooled(self.tokens(x), x)

    def require_token(self, role: str, who: str) -> int:
        """The number of the special token for `role` (mask, cls, ...). Raises ZooError, naming `who` needs it, where
        the tokenizer has none.
        """
        number = self.tokenizer.id(role) if self.tokenizer is not None else LEARNED_IDS[role]
        if number is None:
            raise ZooError(
                f"{who} needs a special token for {role}, and the tokenizer of {self.name} has none; take one that "
                "has, or let the zoo learn one"
            )
        return number


def text_backbone(
    name: str,
    length: int | None = None,
    vocabulary: int | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    pooling: str = "mean",
    **arguments: Plain,
) -> TextBackbone:
    """A network of `transformers` by its short name, with fresh weights drawn from torch's default generator.

    Args:
        name: a key of ARCHITECTURES.
        length: tokens that are read of a text, special tokens included.
        vocabulary: rows of the embedding; by default as many as a given tokenizer needs, else 8192.
        tokenizer: a Tokenizer, a tokenizer.json, or the kind that `learn` learns later: wordpiece (the default), bpe
            or words.
        pooling: mean over a text's tokens, or cls for the first token.
        arguments: numbers, words and switches of the configuration; see ARCHITECTURES.

    Raises ZooError for an unknown keyword or value, and where transformers isn't installed.
    """
    architecture = ARCHITECTURES[name]
    given = tokenizer if isinstance(tokenizer, Tokenizer) else _given_tokenizer(tokenizer)
    length = TEXT_ARGUMENTS["length"] if length is None else length
    vocabulary = (TEXT_ARGUMENTS["vocabulary"] if given is None else given.size) if vocabulary is None else vocabulary
    for word, value in {"length": length, "vocabulary": vocabulary, **arguments}.items():
        _check_value(name, word, value, architecture)
    _check_reading(name, length, pooling, architecture)
    kind = given.kind if given is not None else str(tokenizer or LEARNED[0])
    if given is None:
        check_learnable(kind, vocabulary)
    config = _configuration(name, architecture, length, vocabulary, given, arguments)
    plain: dict[str, Plain] = {**arguments, "vocabulary": vocabulary}
    if pooling != "mean":
        plain["pooling"] = pooling
    if kind != LEARNED[0]:
        plain["tokenizer"] = kind
    return TextBackbone(_network(name, architecture, config, plain), name, plain, length, config, given)


def _given_tokenizer(given: str | Path | None) -> Tokenizer | None:
    """The tokenizer of a tokenizer.json; None for a kind that is learned later."""
    if given is None or given in LEARNED:
        return None
    if not str(given).endswith(".json"):
        raise ZooError(
            f"backbone.tokenizer is {str(given)[:80]!r}, neither a tokenizer.json nor a kind that can be "
            f"learned{nearest(str(given)[:80], LEARNED)}"
        )
    return read_tokenizer(given)


def _check_value(name: str, word: str, value: Any, architecture: Architecture) -> None:
    """Raises ZooError unless the keyword can be set, and the value has its type and a bounded size."""
    defaults = TEXT_ARGUMENTS | architecture.defaults
    if word not in defaults:
        ours = {own: common for common, own in architecture.own.items()} | RENAMED
        hint = (
            f"; it is called {ours[word]} here" if word in ours else nearest(word, [*defaults, "pooling", "tokenizer"])
        )
        raise ZooError(f"backbone.{word} is not a keyword of {name}{hint}")
    default = defaults[word]
    least = 1 if isinstance(default, int) and default > 0 else 0 if isinstance(default, str) else min(default, 0)
    check_plain(word, value, default, least, MOST.get(word, MOST_ELSE))


def _check_reading(name: str, length: int, pooling: str, architecture: Architecture) -> None:
    if length < SHORTEST:
        raise ZooError(f"backbone.length is {length}; texts of fewer than {SHORTEST} tokens have no room for words")
    if pooling not in POOLINGS:
        raise ZooError(f"backbone.pooling is {str(pooling)[:80]!r}{nearest(str(pooling)[:80], POOLINGS)}")
    if pooling == "cls" and architecture.causal:
        raise ZooError(f"backbone.pooling is cls, and the first token of {name} sees no other; use mean")


def _sizes(name: str, architecture: Architecture, arguments: dict[str, Plain]) -> dict[str, Plain]:
    """Every keyword with its value. Raises ZooError for a width that the attention heads don't divide."""
    values = architecture.defaults | arguments
    width, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
    if width % heads:
        fitting = [count for count in range(1, min(width, 64) + 1) if width % count == 0]
        raise ZooError(
            f"backbone.hidden_size {width} can't be divided among backbone.num_attention_heads {heads}; set the heads "
            f"to one of {fitting}"
        )
    if "intermediate_size" not in arguments:
        default = architecture.defaults
        values["intermediate_size"] = max(1, int(default["intermediate_size"] * width / default["hidden_size"]))
    return values


def _configuration(
    name: str,
    architecture: Architecture,
    length: int,
    vocabulary: int,
    tokenizer: Tokenizer | None,
    arguments: dict[str, Plain],
) -> dict[str, Any]:
    """Values for the configuration, by transformers' names."""
    special = LEARNED_IDS if tokenizer is None else {role: tokenizer.id(role) for role in LEARNED_IDS}
    pad = special["pad"] or 0
    places = 0 if architecture.offset is None else pad + architecture.offset
    values = _sizes(name, architecture, arguments) | {
        "vocab_size": vocabulary,
        "max_position_embeddings": length + places,
        "pad_token_id": pad,
        "bos_token_id": special["cls"],
        "eos_token_id": special["sep"],
    }
    if name == "modernbert":
        values |= {"cls_token_id": special["cls"], "sep_token_id": special["sep"]}
    return {architecture.own.get(key, key): value for key, value in values.items()} | architecture.fixed


def _network(
    name: str, architecture: Architecture, configuration: dict[str, Any], arguments: dict[str, Plain]
) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise ZooError(f"{name} is a network of transformers: pip install 'pretext-zoo[text]'") from error
    try:
        config, network = (getattr(transformers, part) for part in architecture.classes)
    except AttributeError:
        raise ZooError(
            f"{name} isn't in transformers {transformers.__version__}: pip install -U 'pretext-zoo[text]'"
        ) from None
    try:
        return network(config(**configuration), **architecture.build)
    except ZooError:
        raise
    except UNFIT as error:
        raise ZooError(f"transformers can't build {name} with {arguments}: {because(error)}") from error

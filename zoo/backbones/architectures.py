"""What text and audio backbones may be told: architectures of `transformers` by short name, and keywords with their
defaults. Imports the standard library alone.

Only plain numbers, words and switches of a configuration can be set. Sizes have the same four names everywhere
(`SIZES`), whatever the configuration of an architecture calls them. A value that is not given is the default below; the
feed-forward width follows `hidden_size` in proportion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Plain = int | float | bool | str
TEXT_ARGUMENTS: dict[str, Plain] = {  # of every text backbone, beside those of its architecture
    "vocabulary": 8192,  # rows of the embedding
    "length": 128,  # tokens of a text, where the data don't say
    "tokenizer": "wordpiece",  # or bpe, words, or a tokenizer.json
    "pooling": "mean",  # or cls
}
AUDIO_ARGUMENTS: dict[str, Plain] = {  # of the log-mel front end, beside timm's own
    "model": "resnet18",  # of timm
    "rate": 16000,  # samples a second
    "seconds": 1.0,  # of a sound
    "mels": 64,  # height of the image
    "window": 0.025,  # seconds of sound in a column of the image
    "hop": 0.01,  # seconds from a column to the next
    "fmin": 0.0,  # Hz, lower end of the lowest band
    "fmax": 0.0,  # Hz, upper end of the highest band; 0 is half of the rate
    "decibels": 80.0,  # range of loudness below a full-scale tone that the image shows
}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclass(frozen=True)
class Architecture:
    """One architecture of `transformers`.

    classes    names of its configuration and of its network without a head
    blocks     where the network keeps its repeated blocks
    defaults   every keyword that may be set, with its default
    fixed      values of the configuration that can't be set
    own        keyword -> what the configuration calls it, where the names differ
    build      keywords of the network itself
    offset     position embeddings beyond the length, counted from the padding's id; None where the length is enough
    causal     whether a token sees only the tokens before it
    """

    classes: tuple[str, str]
    blocks: str
    defaults: dict[str, Plain]
    fixed: dict[str, Any] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    offset: int | None = None
    causal: bool = False


_BASE: dict[str, Plain] = dict(zip(SIZES, (768, 12, 12, 3072), strict=True)) | {"initializer_range": 0.02}
_BERT = _BASE | {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
}
GPT2_NAMES = ("n_embd", "n_layer", "n_head", "n_inner", "n_positions")
_NO_POOLER = {"add_pooling_layer": False}  # a layer that only a classifier of sentence pairs would train

ARCHITECTURES = {
    "bert": Architecture(("BertConfig", "BertModel"), "encoder.layer", _BERT, build=_NO_POOLER),
    "distilbert": Architecture(
        ("DistilBertConfig", "DistilBertModel"),
        "transformer.layer",
        _BASE
        | {
            "num_hidden_layers": 6,
            "activation": "gelu",
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "sinusoidal_pos_embds": False,
        },
        own=dict(zip(SIZES, ("dim", "n_layers", "n_heads", "hidden_dim"), strict=True)),
    ),
    "roberta": Architecture(
        ("RobertaConfig", "RobertaModel"),
        "encoder.layer",
        _BERT | {"layer_norm_eps": 1e-5},
        {"type_vocab_size": 1},
        build=_NO_POOLER,
        offset=1,
    ),
    "deberta-v2": Architecture(
        ("DebertaV2Config", "DebertaV2Model"),
        "encoder.layer",
        _BERT
        | {
            "layer_norm_eps": 1e-7,
            "relative_attention": True,
            "max_relative_positions": -1,
            "pos_att_type": "p2c|c2p",
            "position_biased_input": False,
        },
        {"type_vocab_size": 0},
    ),
    "modernbert": Architecture(
        ("ModernBertConfig", "ModernBertModel"),
        "layers",
        _BASE
        | {
            "num_hidden_layers": 22,
            "intermediate_size": 1152,
            "hidden_activation": "gelu",
            "initializer_cutoff_factor": 2.0,
            "norm_eps": 1e-5,
            "norm_bias": False,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "local_attention": 128,
            "embedding_dropout": 0.0,
            "mlp_bias": False,
            "mlp_dropout": 0.0,
        },
    ),
    "gpt2": Architecture(
        ("GPT2Config", "GPT2Model"),
        "h",
        _BASE
        | {
            "activation_function": "gelu_new",
            "resid_pdrop": 0.1,
            "embd_pdrop": 0.1,
            "attn_pdrop": 0.1,
            "layer_norm_epsilon": 1e-5,
        },
        {"use_cache": False},
        own=dict(zip((*SIZES, "max_position_embeddings"), GPT2_NAMES, strict=True)),
        causal=True,
    ),
}

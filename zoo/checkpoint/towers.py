"""A backbone as files of its own library's layout, and back.

    image  config.json  model.safetensors                                         timm
    audio  config.json  model.safetensors                                         timm, on log-mel images
    text   config.json  model.safetensors  tokenizer.json  tokenizer_config.json  transformers

A backbone of another package has config.json and model.safetensors, whatever it reads. An image backbone's config.json
is timm's; timm opens it where that package registers its network with timm.

Data only. A network is built from the plain keywords of a card, never from what a file names. The files have to
describe the same network, and the weights have to fit it exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from zoo.backbones import Backbone, create_backbone
from zoo.backbones.names import find_plugged
from zoo.backbones.text import TextBackbone
from zoo.backbones.tokenizer import FILE as TOKENIZER
from zoo.backbones.tokenizer import LEARNED, Tokenizer
from zoo.checkpoint.files import (
    CONFIG,
    CONFIG_KEYS,
    MODEL,
    PRETRAINED_KEYS,
    fill_exactly,
    json_bytes,
    timm_config,
    weights,
)
from zoo.errors import ZooError, nearest
from zoo.machine.bounds import BESIDE, Bounded
from zoo.strict import read_json

TOKENIZER_CONFIG = "tokenizer_config.json"
FILES = {  # what a tower of each kind consists of
    "image": (CONFIG, MODEL),
    "audio": (CONFIG, MODEL),
    "text": (CONFIG, MODEL, TOKENIZER, TOKENIZER_CONFIG),
}


def tower_files(backbone: Backbone, license: str | None) -> dict[str, bytes]:
    """File name -> bytes of a backbone, as its library reads a folder of these files without us.

    `license` of the weights is an SPDX expression, or None; timm shows it, and transformers has no place for it. Equal
    backbones give equal bytes.

    Raises ZooError for weights that aren't finite, a text backbone without a tokenizer, and a kind that can't be kept.
    """
    files = {MODEL: weights(backbone.model.state_dict(), MODEL)}
    if backbone.origin != "zoo" and backbone.reads != "image":
        return files | {CONFIG: json_bytes(plugged_config(backbone, license))}
    _check_kind(backbone.reads)
    if backbone.reads == "text":
        if backbone.tokenizer is None:
            raise ZooError(f"{backbone.name} has no tokenizer yet, so it can't be kept; call its learn(texts) first")
        files[CONFIG] = json_bytes(transformers_config(backbone))
        files[TOKENIZER_CONFIG] = json_bytes(tokenizer_config(backbone))
        return files | {TOKENIZER: backbone.tokenizer.json}
    return files | {CONFIG: json_bytes(timm_config(backbone, license))}


def read_tower(
    kind: str, spec: dict[str, Any], read: Callable[[str], bytes], where: str = "the checkpoint"
) -> Backbone:
    """The backbone of a tower with its weights, in eval mode. The generators of torch stay as they are.

    Args:
        kind: of the field that the backbone reads: a key of FILES.
        spec: plain keywords of `create_backbone`, what the data gave included, as `Backbone.spec` returns them.
        read: gives the bytes of one of the tower's files, size and hash checked; it raises ZooError for a missing one.
        where: the tower's folder, for sentences about its files.

    Raises ZooError for files that describe another network than `spec`, and for weights that don't fit.
    """
    plugin = find_plugged(spec["name"])
    if plugin is None:
        _check_kind(kind)
    data = read(MODEL)
    bounds = Bounded(
        f"the network that the card of {where} describes",
        BESIDE + 4 * len(data),
        f"its weights hold {len(data) / 1e6:,.1f} MB, so they belong to another, and nothing was loaded",
    )
    ours = kind == "text" and plugin is None
    given = {"tokenizer": Tokenizer(read(TOKENIZER), f"{where}/{TOKENIZER}")} if ours else {}
    with torch.random.fork_rng(devices=[]), bounds:
        backbone = create_backbone(**spec | given)
    if backbone.reads != kind:
        raise ZooError(f"the card says that the network in {where} reads {kind}, and {backbone.name} doesn't")
    if ours:
        _check_text_files(backbone, spec, read, where)
    elif plugin is not None and kind != "image":
        config, wanted = read_json(read(CONFIG), f"{where}/{CONFIG}"), plugged_config(backbone, None)
        for key in ("architecture", "model_args"):
            _check_same(key, config.get(key) if isinstance(config, dict) else None, wanted[key], f"{where}/{CONFIG}")
    else:
        _check_image_config(backbone, read(CONFIG), f"{where}/{CONFIG}")
    fill_exactly(backbone.model, backbone.model.state_dict(), data, f"{where}/{MODEL}")
    return backbone.eval()


def plugged_config(backbone: Backbone, license: str | None) -> dict[str, Any]:
    """config.json of a backbone of another package that doesn't read images: its name and keywords."""
    return {
        "architecture": backbone.name,
        "num_features": backbone.num_features,
        "model_args": backbone.arguments,
        "pretrained_cfg": {"license": license},
    }


def transformers_config(backbone: TextBackbone) -> dict[str, Any]:
    """config.json of a text backbone, as AutoModel.from_pretrained reads it."""
    config = backbone.model.config
    made = {"architectures": [type(backbone.model).__name__], "dtype": "float32", "model_type": config.model_type}
    return made | backbone.configuration


def tokenizer_config(backbone: TextBackbone) -> dict[str, Any]:
    """tokenizer_config.json of a text backbone, as AutoTokenizer.from_pretrained reads it."""
    special = {f"{role}_token": name for role, name in backbone.tokenizer.special.items()}
    return special | {
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": backbone.length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _check_kind(kind: str) -> None:
    if kind not in FILES:
        raise ZooError(f"a backbone that reads {kind} has no files of a checkpoint{nearest(kind, FILES)}")


def _check_image_config(backbone: Backbone, data: bytes, where: str) -> None:
    """Raises ZooError unless timm would build the network of `backbone` from this config.json, and nothing else."""
    config, wanted = read_json(data, where), timm_config(backbone, None)
    if not isinstance(config, dict) or not isinstance(config.get("pretrained_cfg"), dict):
        raise ZooError(f"{where} is not a description of a timm model")
    if odd := sorted((config.keys() - CONFIG_KEYS) | (config["pretrained_cfg"].keys() - PRETRAINED_KEYS)):
        raise ZooError(f"{where} has {odd[0]}, which doesn't belong into a checkpoint")
    for key in ("architecture", "num_classes", "model_args"):
        _check_same(key, config.get(key), wanted[key], where)


def _check_same(key: str, found: Any, wanted: Any, where: str) -> None:
    if found != json.loads(json.dumps(wanted)):
        raise ZooError(
            f"{where} and the card describe different networks: {key} is {str(found)[:80]} and {str(wanted)[:80]}"
        )


def _check_text_files(backbone: TextBackbone, spec: dict[str, Any], read: Callable[[str], bytes], where: str) -> None:
    """Raises ZooError unless transformers would build the same network and tokenizer from these files, and run no code
    that they name.
    """
    _check_same("tokenizer", spec.get("tokenizer", LEARNED[0]), backbone.tokenizer.kind, f"{where}/{TOKENIZER}")
    for file, wanted in ((CONFIG, transformers_config(backbone)), (TOKENIZER_CONFIG, tokenizer_config(backbone))):
        found = read_json(read(file), f"{where}/{file}")
        if not isinstance(found, dict) or (odd := sorted(found.keys() ^ wanted.keys())):
            what = f"has or lacks {odd[0][:80]}" if isinstance(found, dict) else "is no mapping"
            raise ZooError(f"{where}/{file} is not the description of a text backbone: it {what}")
        for key in wanted:
            _check_same(key, found[key], wanted[key], f"{where}/{file}")

"""Tensors from files of strangers, read as data alone: safetensors, or torch's restricted unpickler."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from zoo.errors import ZooError

DEEPEST = 4  # levels of mappings in which tensors are looked for


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor of a file by its dotted name, those inside of mappings included. Runs nothing that the file says.
    Raises ZooError.
    """
    if not file.is_file():
        raise ZooError(f"there is no file {file}" if not file.exists() else f"{file} is not a file of weights")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        _check_unpacked(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses about a pickle's protocol
            content = torch.load(file, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise ZooError(f"{file} is not a whole safetensors file: {error}") from error
    except pickle.UnpicklingError as error:
        raise ZooError(f"{file} {_what_else(str(error))}") from error
    except ZooError:
        raise
    except Exception as error:  # torch's reader raises whatever the bytes lead it to
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise ZooError(f"{file} can't be read as a file of weights: {reason}") from error
    return dict(_tensors(content, "", DEEPEST))


def _check_unpacked(file: Path) -> None:
    """torch.save only stores in its zip files; what is compressed, or lies in one place under many names, may unpack to
    a thousand times the file.
    """
    with open(file, "rb") as stream:
        if stream.read(4) != b"PK\3\4":  # torch's own test; older files are plain pickles
            return
    with zipfile.ZipFile(file) as content:
        unpacked = sum(member.file_size for member in content.infolist())
    if unpacked > (size := file.stat().st_size):
        raise ZooError(
            f"{file} has {size:,} bytes and would unpack to {unpacked:,}, and torch.save compresses nothing; "
            "load it where you trust it, write its state dict anew with torch.save, and import that"
        )


def _what_else(error: str) -> str:
    """What the restricted unpickler refused, without torch's advice to switch it off."""
    if named := re.search(r"GLOBAL ([\w.]+)|(?:class|global|function) ([\w.]+)", error):
        return (
            f"holds more than weights: it would import {named[1] or named[2]}, which is not done; where you trust it, "
            "write its weights alone, "
            'torch.save(state["state_dict"], "weights.pth"), and import those'
        )
    return (
        "is not a file of weights that can be read without running what it says; write its state dict alone, or as "
        "safetensors, and import that"
    )


def _tensors(value: Any, name: str, levels: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta or value.is_nested:
            raise ZooError(
                f"{name} is a tensor without plain numbers (sparse, nested or on no device); save it as a dense one, "
                "and import that"
            )
        yield name, value
    elif isinstance(value, Mapping) and levels:
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}" if name else str(key), levels - 1)

"""A new checkpoint's card, in the making: what is common to training, importing and the contract's test."""

from __future__ import annotations

import time
from typing import Any

from zoo.data.info import DataInfo
from zoo.fields import plain
from zoo.machine.provenance import commit, machine, packages, peak_memory_mb


def new_card(name: str, summary: str, data: dict, **facts: Any) -> dict:
    """The card of a checkpoint that `zoo.checkpoint.write.export` completes.

    Args:
        name: of the checkpoint.
        summary: one line.
        data: as `data_entry` gives it.
        facts: other fields of the card; by default nothing was trained and measured, on this machine's CPU.
    """
    return {
        "name": name,
        "summary": summary,
        "data": data,
        "recipe": {},
        "seed": 0,
        "steps": 0,
        "samples_seen": 0,
        "minutes": 0.0,
        "peak_memory_mb": peak_memory_mb(),
        "machine": facts.pop("machine", None) or machine("cpu"),
        "packages": packages(),
        "commit": commit(),
        "created": time.strftime("%Y-%m-%d"),
        "metrics": [],
        "check": None,
        "license": None,
        "parent": None,
    } | facts


def data_entry(info: DataInfo, fingerprint: str, size: int | tuple[int, int] | None = None) -> dict:
    """What a card says of its data. `size` is that of the images where it isn't the set's own."""
    size = (info.size if size is None else size) or None  # 0 of a set without images
    return {
        "name": info.name,
        "version": info.version,
        "license": info.license,
        "attribution": info.attribution,
        "size": list(size) if isinstance(size, tuple) else size,
        "channels": info.channels,
        "fingerprint": fingerprint,
        "kinds": {name: plain(kind) for name, kind in info.kinds.items()},
    }

"""A card and a checkpoint folder for tests that need no network trained, nor torch."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from zoo import card as cards

METRIC = {
    "protocol": "knn",
    "features": "backbone",
    "data": "digits",
    "split": "test",
    "labels": 1.0,
    "value": 91.25,
    "sd": 0.5,
    "seeds": 3,
    "command": "zoo evaluate runs/a --data digits",
}
CARD = {
    "schema": 1,
    "name": "simclr-tiny",
    "summary": "Two views of one picture should look alike.",
    "task": {"name": "simclr", "temperature": 0.2},
    "backbone": {"name": "test_resnet", "output_stride": 8},
    "data": {
        "name": "digits",
        "version": "1",
        "license": "CC-BY-4.0",
        "attribution": "E. Alpaydin and C. Kaynak",
        "size": 16,
        "channels": 1,
        "fingerprint": "ab" * 32,
    },
    "recipe": {"seed": 0, "data": {"name": "digits"}, "backbone": {"name": "test_resnet"}},
    "seed": 0,
    "steps": 10,
    "samples_seen": 640,
    "minutes": 0.5,
    "peak_memory_mb": 512.0,
    "machine": {"cpu": "c", "cores": 2, "threads": 1, "device": "cpu", "os": "Linux x86_64"},
    "packages": {"torch": "2.14.1"},
    "commit": None,
    "created": "2026-01-31",
    "parameters": 372688,
    "files": [],
    "metrics": [METRIC],
    "check": {"protocol": "knn", "data": "digits", "images": 2000, "value": 90.0, "tolerance": 0.5},
    "license": "Apache-2.0",
    "parent": None,
}


def a_card(**changes) -> dict:
    return copy.deepcopy(CARD) | changes


def write_folder(folder: Path, contents: dict[str, bytes] | None = None, **changes) -> Path:
    """A checkpoint as far as hubs look at it: files, a card that lists them, and the README."""
    contents = {"model.safetensors": bytes(range(256)) * 800, "config.json": b"{}\n"} if contents is None else contents
    folder.mkdir(parents=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    card = a_card(files=[cards.entry_for(name, data) for name, data in sorted(contents.items())], **changes)
    (folder / "zoo.json").write_text(json.dumps(card))
    (folder / "README.md").write_text("made from the card\n")
    return folder

"""The index.json of a hub: for each name what a list shows, and the size and sha256 of its card. Nothing here imports
torch.
"""

from __future__ import annotations

import hashlib
import json

from zoo import card as cards
from zoo.errors import ZooError

INDEX, SCHEMA, LARGEST = "index.json", 1, 16 << 20
ENTRY: dict[str, tuple] = {
    "card": (dict,),
    "summary": (str,),
    "task": (str,),
    "backbone": (str,),
    "data": (str,),
    "parameters": (int,),
    "bytes": (int,),
    "knn": (int, float, type(None)),
    "license": (str, type(None)),
}
CARD: dict[str, tuple] = {"size": (int,), "sha256": (str,)}


def parse_index(data: bytes, where: str) -> dict[str, dict]:
    """Entries by name. Raises ZooError for everything that is no index, and nothing else."""
    index = cards.read_json(data, where, LARGEST)
    if isinstance(index, dict) and isinstance(schema := index.get("schema"), int) and schema > SCHEMA:
        raise ZooError(f"{where} is of schema {schema}, and this zoo reads schema {SCHEMA}; update pretext-zoo")
    cards.check_fields(index, {"schema": (int,), "checkpoints": (dict,)}, where)
    for name, entry in index["checkpoints"].items():
        cards.check_name(name, where)
        cards.check_fields(entry, ENTRY, f"{where}, {name}")
        cards.check_fields(entry["card"], CARD, f"{where}, {name}, card")
        if not cards.SHA256.fullmatch(entry["card"]["sha256"]) or not 0 < entry["card"]["size"] <= cards.LARGEST:
            raise ZooError(f"{where}, {name}: card has to be the size and sha256 of its {cards.FILE}")
    return index["checkpoints"]


def entry_of(card: dict, text: bytes) -> dict:
    """What the index says of a checkpoint whose zoo.json is `text`."""
    knn = [
        m["value"]
        for m in card["metrics"]
        if m["protocol"] == "knn" and m["features"] == "backbone" and m["labels"] == 1.0
    ]
    return {
        "card": {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()},
        "summary": card["summary"],
        "task": card["task"]["name"],
        "backbone": card["backbone"]["name"],
        "data": card["data"]["name"],
        "parameters": card["parameters"],
        "bytes": sum(entry["size"] for entry in card["files"]),
        "knn": knn[0] if knn else None,
        "license": card["license"],
    }


def index_text(entries: dict[str, dict]) -> str:
    return (
        json.dumps({"schema": SCHEMA, "checkpoints": dict(sorted(entries.items()))}, indent=1, ensure_ascii=False)
        + "\n"
    )

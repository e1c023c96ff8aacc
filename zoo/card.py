"""The card of a checkpoint (zoo.json): where every number came from. Reading is strict; a card is data from a stranger.

schema, name, summary, task, backbone, data, recipe, seed, steps, samples_seen, minutes, peak_memory_mb, machine,
packages, commit, created, parameters, files, metrics, check, license, parent
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, nearest
from zoo.strict import LARGEST, Missing, check_fields, open_plain, read_json

SCHEMA, FILE, README = 1, "zoo.json", "README.md"
LARGEST_SIZE, MOST_CHANNELS = (
    2048,
    64,
)  # pixels of a side, in cards as in recipes; a stranger's card doesn't decide how much memory is taken
PLACES = ("folder", "shards")  # names of data that say where on a machine they lie
SUFFIXES = (".safetensors", ".json", ".png", ".txt", ".csv", ".yaml")  # data only: nothing that runs when it is opened
RESERVED = (FILE, README.lower())  # the card can't list itself, and the README is made from it
SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(" + "|".join(re.escape(suffix) for suffix in SUFFIXES) + ")")
SHA256 = re.compile(r"[0-9a-f]{64}")
PROTOCOLS = ("knn", "linear", "finetune")

NUMBER, OPTIONAL_TEXT = (int, float), (str, type(None))
FIELDS: dict[str, tuple] = {
    "schema": (int,),
    "name": (str,),
    "summary": (str,),
    "task": (dict,),
    "backbone": (dict,),
    "data": (dict,),
    "recipe": (dict,),
    "seed": (int,),
    "steps": (int,),
    "samples_seen": (int,),
    "minutes": NUMBER,
    "peak_memory_mb": NUMBER,
    "machine": (dict,),
    "packages": (dict,),
    "commit": OPTIONAL_TEXT,
    "created": (str,),
    "parameters": (int,),
    "files": (list,),
    "metrics": (list,),
    "check": (dict, type(None)),
    "license": OPTIONAL_TEXT,
    "parent": OPTIONAL_TEXT,
}
DATA: dict[str, tuple] = {
    "name": (str,),
    "version": (str,),
    "license": (str,),
    "attribution": (str,),
    "size": (int,),
    "channels": (int,),
    "fingerprint": (str,),
}
METRIC: dict[str, tuple] = {
    "protocol": (str,),
    "features": (str,),
    "data": (str,),
    "split": (str,),
    "labels": NUMBER,
    "value": NUMBER,
    "sd": (*NUMBER, type(None)),
    "seeds": (int,),
    "command": (str,),
}
CHECK: dict[str, tuple] = {"protocol": (str,), "data": (str,), "images": (int,), "value": NUMBER, "tolerance": NUMBER}
FILES: dict[str, tuple] = {"path": (str,), "size": (int,), "sha256": (str,)}


def parse(text: str | bytes, where: str) -> dict:
    """Card text -> dict of the exact form above. Raises ZooError for everything else, and never anything but that."""
    card = read_json(text, where)
    check(card, where)
    return card


def check(card: Any, where: str) -> None:
    """Raises ZooError, naming the field, unless `card` (plain values, as read_json gives them) is a card."""
    if isinstance(card, dict) and isinstance(schema := card.get("schema"), int) and schema > SCHEMA:
        raise ZooError(f"{where} is a card of schema {schema}, and this zoo reads schema {SCHEMA}; update pretext-zoo")
    check_fields(card, FIELDS, where)
    if card["schema"] != SCHEMA:
        raise ZooError(
            f"{where} is a card of schema {card['schema']}, which there never was; this zoo reads schema {SCHEMA}"
        )
    check_name(card["name"], where)
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", card["created"]):
        raise ZooError(f"{where}: created has to be a date such as 2026-01-31, and is {card['created'][:80]!r}")
    if card["license"] is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 .+()-]{0,99}", card["license"]):
        raise ZooError(
            f"{where}: license has to be an SPDX expression such as Apache-2.0, or null, and is "
            f"{card['license'][:80]!r}"
        )
    check_fields(card["data"], DATA, f"{where}, data")
    if (
        not 1 <= card["data"]["size"] <= LARGEST_SIZE or card["data"]["channels"] > MOST_CHANNELS
    ):  # pictures are decoded to it
        raise ZooError(
            f"{where}: data can't be pictures of {card['data']['size']} pixels and {card['data']['channels']} "
            "channels; "
            f"at most {LARGEST_SIZE} and {MOST_CHANNELS} are taken"
        )
    for key, other in (("task", "backbone"), ("backbone", "size")):  # each has its place elsewhere in the card
        if not isinstance(card[key].get("name"), str) or other in card[key]:
            raise ZooError(f"{where}: {key} has to be a name and its arguments, without {other}")
    _check_files(card["files"], where)
    for number, metric in enumerate(card["metrics"]):
        check_metric(metric, f"{where}, metric {number}")
    if card["check"] is not None:
        check_fields(card["check"], CHECK, f"{where}, check")


def check_metric(metric: Any, where: str) -> None:
    """Raises ZooError unless `metric` is a row of measured results."""
    check_fields(metric, METRIC, where)
    if metric["protocol"] not in PROTOCOLS:
        raise ZooError(
            f"{where}: {metric['protocol'][:80]!r} is not a protocol{nearest(metric['protocol'][:80], PROTOCOLS)}"
        )
    labels = metric["labels"]
    if not (0 < labels <= 1 if isinstance(labels, float) else labels >= 1):
        raise ZooError(
            f"{where}: labels is {labels}; it has to be a share of the labels (0.01, 1.0) or a whole number per class "
            "(5)"
        )


def check_name(name: str, where: str) -> str:
    if not SLUG.fullmatch(name):
        raise ZooError(
            f"{where}: {name[:80]!r} can't name a checkpoint; use lower-case letters, digits, dots, hyphens and "
            "underscores"
        )
    return name


def _check_files(entries: list, where: str) -> None:
    seen = set()
    for number, entry in enumerate(entries):
        check_fields(entry, FILES, f"{where}, file {number}")
        path = entry["path"]
        if not FILE_NAME.fullmatch(path) or path.lower() in RESERVED:
            raise ZooError(
                f"{where}: file {number} has to be a plain name ending in {', '.join(SUFFIXES)}, and is {path[:80]!r}"
            )
        if not SHA256.fullmatch(entry["sha256"]):
            raise ZooError(f"{where}: the sha256 of {path} has to be 64 digits 0-9a-f, and is {entry['sha256'][:80]!r}")
        if path.lower() in seen:  # also where a disk doesn't tell a from A
            raise ZooError(f"{where} lists {path} twice")
        seen.add(path.lower())


def dump(card: dict) -> str:
    """The text of zoo.json. Raises ZooError for what `parse` wouldn't read back."""
    try:
        text = json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ZooError(f"{FILE} can't be written: {error}") from None
    parse(text, FILE)
    return text


# ---- a folder and its card -----------------------------------------------------------------------


def read_card(folder: str | Path, hashed: bool = True) -> dict:
    """The card of a checkpoint folder, after comparing size and (if `hashed`) sha256 of every file it lists.

    Raises ZooError for a folder that is none, a damaged card, and a missing, truncated or altered file.
    """
    folder = Path(folder)
    card = parse(read_text(folder), str(folder / FILE))
    for entry in card["files"]:
        check_file(folder, entry, hashed)
    return card


def short_name(data: str) -> str:
    """folder:/home/me/pictures -> folder:pictures, and likewise shards:; other names as they are."""
    kind, mark, place = data.partition(":")
    if not mark or kind not in PLACES:
        return data
    return f"{kind}:{os.path.basename(os.path.abspath(os.path.expanduser(place))) or 'root'}"


def public(card: dict) -> dict:
    """The card as it is published: a folder of pictures by its last name, wherever it is named, instead of its place on
    one's machine.
    """

    def change(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: change(part, name) for name, part in value.items()}
        if isinstance(value, list):
            return [change(part) for part in value]
        if isinstance(value, str) and key == "command" and any(f"{kind}:" in value for kind in PLACES):
            with contextlib.suppress(ValueError):  # of quotes that aren't closed: no command of ours
                return shlex.join(map(change, shlex.split(value)))
        return short_name(value) if isinstance(value, str) else value

    return change(card)


def bad_samples_of(card: dict, name: str) -> dict:
    """What the card's recipe says about images that can't be read, as keywords of create_data; nothing for other data
    than the recipe's.
    """
    given = card["recipe"].get("data")
    if name != card["data"]["name"] or not isinstance(given, dict):
        return {}
    way, share = given.get("bad_samples"), given.get("bad_share")
    if way not in ("skip", "replace") or not isinstance(share, (int, float)):
        return {}
    return {"bad_samples": way, "bad_share": share}


def read_text(folder: Path) -> bytes:
    """The bytes of a folder's card. Raises ZooError for a folder that is no checkpoint."""
    try:
        with open_plain(folder, FILE) as file:
            return file.read(LARGEST + 1)
    except Missing:
        raise Missing(f"{folder} is not a checkpoint: it has no {FILE}") from None


def check_file(folder: Path, entry: dict, hashed: bool = True) -> None:
    """Raises ZooError unless `entry` (path, size, sha256) of a card describes the file that lies in `folder`."""
    with open_plain(folder, entry["path"]) as file:
        _check_size(folder, entry, os.fstat(file.fileno()).st_size)
        if hashed:
            _check_digest(folder, entry, hashlib.file_digest(file, "sha256").hexdigest())


def read_file(folder: Path, card: dict, path: str) -> bytes:
    """The bytes of a file that the card lists, checked before anybody parses them. Raises ZooError."""
    entry = next((entry for entry in card["files"] if entry["path"] == path), None)
    if entry is None:
        raise ZooError(f"{folder} has no {path} among the files of its card, so it can't be loaded")
    with open_plain(folder, path) as file:
        _check_size(folder, entry, os.fstat(file.fileno()).st_size)
        data = file.read(entry["size"])
    _check_digest(folder, entry, hashlib.sha256(data).hexdigest())
    return data


def _check_size(folder: Path, entry: dict, size: int) -> None:
    if size != entry["size"]:
        raise ZooError(
            f"{folder / entry['path']} has {size:,} bytes where its card says {entry['size']:,}; "
            "it was truncated or altered, so pull or export it again"
        )


def _check_digest(folder: Path, entry: dict, digest: str) -> None:
    if digest != entry["sha256"]:
        raise ZooError(
            f"{folder / entry['path']} is not the file that its card describes (another sha256); it was altered, "
            "so pull or export it again"
        )


def files(folder: Path, paths: list[str]) -> list[dict]:
    """The card's list of files: name, size and sha256 of each."""
    return [
        {"path": path, "size": (folder / path).stat().st_size, "sha256": sha256(folder / path)}
        for path in sorted(paths)
    ]


def entry_for(path: str, data: bytes) -> dict:
    """The card's line for a file of these bytes."""
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- the README that people see ------------------------------------------------------------------


def label_amount(labels: float) -> str:
    """1.0 -> all, 0.01 -> 1 %, 5 -> 5 per class."""
    if isinstance(labels, int):
        return f"{labels} per class"
    return "all" if labels == 1.0 else f"{100 * labels:g} %"

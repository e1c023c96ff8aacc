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
from zoo.fields import given_to_backbone
from zoo.strict import LARGEST, Missing, check_fields, open_plain, read_json

SCHEMAS, FILE, README = (1, 2), "zoo.json", "README.md"  # 2: several towers, text, sound, rectangular images
LARGEST_SIZE, MOST_CHANNELS = (
    2048,
    64,
)  # pixels of a side, in cards as in recipes; a stranger's card doesn't decide how much memory is taken
PLACES = ("folder", "shards")  # names of data that say where on a machine they lie
SUFFIXES = (".safetensors", ".json", ".png", ".txt", ".csv", ".yaml")  # data only: nothing that runs when it is opened
RESERVED = (FILE, README.lower())  # the card can't list itself, and the README is made from it
SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(" + "|".join(re.escape(suffix) for suffix in SUFFIXES) + ")")
TOWER = re.compile(r"[a-z][a-z0-9_]{0,31}")  # also the name of the folder of a tower's files
MOST_TOWERS, MOST_KINDS = 8, 64
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
# What schema 2 has beside schema 1, or otherwise. A card is written in the lowest schema that can say it.
SECOND: dict[str, dict[str, tuple]] = {
    "card": FIELDS | {"towers": (dict,)},
    "data": DATA | {"size": (int, list, type(None)), "kinds": (dict,)},
    "metric": METRIC | {"unit": (str,)},
}
TOWERS: dict[str, tuple] = {"reads": (str,), "backbone": (dict,), "parameters": (int,), "folder": (str,)}
FILES: dict[str, tuple] = {"path": (str,), "size": (int,), "sha256": (str,)}


def parse(text: str | bytes, where: str) -> dict:
    """Card text -> dict of the exact form above. Raises ZooError for everything else, and never anything but that."""
    card = read_json(text, where)
    check(card, where)
    return card


def check(card: Any, where: str) -> None:
    """Raises ZooError, naming the field, unless `card` (plain values, as read_json gives them) is a card."""
    schema = card.get("schema") if isinstance(card, dict) else 1
    if isinstance(schema, int) and schema > max(SCHEMAS):
        raise ZooError(
            f"{where} is a card of schema {schema}, and this zoo reads schema {_known()}; update pretext-zoo"
        )
    check_fields(card, SECOND["card"] if schema == 2 else FIELDS, where)
    if schema not in SCHEMAS:
        raise ZooError(f"{where} is a card of schema {schema}, which there never was; this zoo reads schema {_known()}")
    check_name(card["name"], where)
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", card["created"]):
        raise ZooError(f"{where}: created has to be a date such as 2026-01-31, and is {card['created'][:80]!r}")
    if card["license"] is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 .+()-]{0,99}", card["license"]):
        raise ZooError(
            f"{where}: license has to be an SPDX expression such as Apache-2.0, or null, and is "
            f"{card['license'][:80]!r}"
        )
    _check_data(card["data"], schema, f"{where}, data")
    for key, other in (("task", "backbone"), ("backbone", "size")):  # each has its place elsewhere in the card
        if not isinstance(card[key].get("name"), str) or other in card[key]:
            raise ZooError(f"{where}: {key} has to be a name and its arguments, without {other}")
    if schema == 2:
        _check_towers(card, f"{where}, towers")
    _check_files(card["files"], where, [tower["folder"] for tower in towers_of(card).values()])
    for number, metric in enumerate(card["metrics"]):
        check_metric(metric, f"{where}, metric {number}", schema)
    if card["check"] is not None:
        check_fields(card["check"], CHECK, f"{where}, check")


def _known() -> str:
    return " and ".join(map(str, SCHEMAS))


def _check_data(data: Any, schema: int, where: str) -> None:
    check_fields(data, SECOND["data"] if schema == 2 else DATA, where)
    size = data["size"]
    sides = size if isinstance(size, list) else [] if size is None else [size]
    pair = not isinstance(size, list) or len(size) == 2
    whole = all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= LARGEST_SIZE for side in sides)
    if not pair or not whole or data["channels"] > MOST_CHANNELS:  # images are decoded to this size
        raise ZooError(
            f"{where} can't be images of {str(size)[:40]} pixels and {data['channels']} channels; "
            f"at most {LARGEST_SIZE} and {MOST_CHANNELS} are taken"
        )
    for field, kind in data.get("kinds", {}).items():
        if len(data["kinds"]) > MOST_KINDS or not isinstance(kind, dict) or not isinstance(kind.get("kind"), str):
            raise ZooError(f"{where}: kinds has to say the kind of each field, and {field[:40]!r} is {str(kind)[:80]}")


def _check_towers(card: dict, where: str) -> None:
    towers = card["towers"]
    if not 1 <= len(towers) <= MOST_TOWERS:
        raise ZooError(f"{where} has {len(towers)} entries; a task has 1 to {MOST_TOWERS}")
    for name, tower in towers.items():
        if not TOWER.fullmatch(name):
            raise ZooError(f"{where}: {name[:80]!r} can't name a tower; use lower-case letters, digits and underscores")
        check_fields(tower, TOWERS, f"{where}, {name}")
        if not isinstance(tower["backbone"].get("name"), str):
            raise ZooError(f"{where}, {name}: backbone has to be a name and its arguments")
        if tower["folder"] not in ("", name):
            raise ZooError(f"{where}, {name}: folder is {tower['folder'][:80]!r}; it is empty or {name}")
    top = [tower["backbone"] for tower in towers.values() if not tower["folder"]]
    if top != [card["backbone"]]:
        raise ZooError(f"{where}: exactly one tower has no folder of its own, and its network is the card's backbone")


def towers_of(card: dict) -> dict[str, dict]:
    """The networks of a checkpoint by tower: what each reads, its keywords, its parameters, and the folder of its files
    within the checkpoint, which is empty for the first tower.
    """
    only = {"reads": "image", "backbone": card["backbone"], "parameters": card["parameters"], "folder": ""}
    return card.get("towers") or {"backbone": only}


def given_by_data(card: dict, reads: str) -> dict[str, Any]:
    """Keywords of `create_backbone` that a network of that kind has from its data: the size of images, the length of
    texts, the rate and seconds of sound.
    """
    if reads == "image":
        size = card["data"]["size"]
        return {"size": tuple(size) if isinstance(size, list) else size}
    kinds = card["data"].get("kinds", {}).values()
    return next((given_to_backbone(kind) for kind in kinds if kind["kind"] == reads), {})


def check_metric(metric: Any, where: str, schema: int = 1) -> None:
    """Raises ZooError unless `metric` is a row of measured results."""
    check_fields(metric, SECOND["metric"] if schema == 2 else METRIC, where)
    if schema == 1 and metric["protocol"] not in PROTOCOLS:
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


def _check_files(entries: list, where: str, folders: list[str]) -> None:
    seen = set()
    for number, entry in enumerate(entries):
        check_fields(entry, FILES, f"{where}, file {number}")
        path = entry["path"]
        folder, slash, name = path.rpartition("/")
        if not FILE_NAME.fullmatch(name) or name.lower() in RESERVED or (slash and folder not in filter(None, folders)):
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


def parent_text(name: str, digest: str, license: str | None = None) -> str:
    """What a card says of the weights that its own come from: their name, their sha256 and, if known, their licence."""
    return f"{name} sha256:{digest}" + (f", {license}" if license else "")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- the README that people see ------------------------------------------------------------------


def label_amount(labels: float) -> str:
    """1.0 -> all, 0.01 -> 1 %, 5 -> 5 per class."""
    if isinstance(labels, int):
        return f"{labels} per class"
    return "all" if labels == 1.0 else f"{100 * labels:g} %"

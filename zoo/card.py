"""The card of a checkpoint (zoo.json): where every number came from. Reading is strict; a card is data from a stranger.

    schema, name, summary, task, backbone, data, recipe, seed, steps, samples_seen, minutes, peak_memory_mb, machine, packages, commit,
    created, parameters, files, metrics, check, license, parent
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, nearest

SCHEMA, FILE, LARGEST = 1, "zoo.json", 1024 * 1024
SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SHA256 = re.compile(r"[0-9a-f]{64}")
PROTOCOLS = ("knn", "linear", "finetune")

NUMBER, OPTIONAL_TEXT = (int, float), (str, type(None))
FIELDS: dict[str, tuple] = {
    "schema": (int,), "name": (str,), "summary": (str,), "task": (dict,), "backbone": (dict,), "data": (dict,), "recipe": (dict,),
    "seed": (int,), "steps": (int,), "samples_seen": (int,), "minutes": NUMBER, "peak_memory_mb": NUMBER, "machine": (dict,),
    "packages": (dict,), "commit": OPTIONAL_TEXT, "created": (str,), "parameters": (int,), "files": (list,), "metrics": (list,),
    "check": (dict, type(None)), "license": OPTIONAL_TEXT, "parent": OPTIONAL_TEXT}
DATA: dict[str, tuple] = {"name": (str,), "version": (str,), "license": (str,), "attribution": (str,), "size": (int,), "channels": (int,),
                          "fingerprint": (str,)}
METRIC: dict[str, tuple] = {"protocol": (str,), "features": (str,), "data": (str,), "split": (str,), "labels": NUMBER, "value": NUMBER,
                            "sd": (*NUMBER, type(None)), "seeds": (int,), "command": (str,)}
CHECK: dict[str, tuple] = {"protocol": (str,), "data": (str,), "images": (int,), "value": NUMBER, "tolerance": NUMBER}
FILES: dict[str, tuple] = {"path": (str,), "size": (int,), "sha256": (str,)}


def parse(text: str | bytes, where: str) -> dict:
    """Card text -> dict of the exact form above. Raises ZooError for everything else, and never anything but that."""
    if len(text) > LARGEST:
        raise ZooError(f"{where} is larger than {LARGEST // 1024} KiB, so it is no card")
    try:
        card = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except ZooError as error:
        raise ZooError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{where} is not valid JSON: {str(error)[:200]}") from None
    check(card, where)
    return card


def check(card: Any, where: str) -> None:
    """Raises ZooError, naming the field, unless `card` is a card."""
    _check_fields(card, FIELDS, where)
    if card["schema"] != SCHEMA:
        raise ZooError(f"{where} is a card of schema {card['schema']}, and this zoo reads schema {SCHEMA}; update pretext-zoo")
    check_name(card["name"], where)
    _check_fields(card["data"], DATA, f"{where}, data")
    for key in ("task", "backbone", "recipe", "machine", "packages"):
        _check_plain(card[key], f"{where}, {key}", 0)
    for key in ("task", "backbone"):
        if not isinstance(card[key].get("name"), str):
            raise ZooError(f"{where}: {key} has no name")
    for number, file in enumerate(card["files"]):
        _check_fields(file, FILES, f"{where}, file {number}")
        if not FILE_NAME.fullmatch(file["path"]) or not SHA256.fullmatch(file["sha256"]) or file["size"] < 0:
            raise ZooError(f"{where}: file {number} has to be a plain file name with its size and sha256, and is {str(file['path'])[:80]!r}")
    if len({file["path"] for file in card["files"]}) != len(card["files"]):
        raise ZooError(f"{where} lists a file twice")
    for number, metric in enumerate(card["metrics"]):
        _check_fields(metric, METRIC, f"{where}, metric {number}")
        if metric["protocol"] not in PROTOCOLS:
            raise ZooError(f"{where}, metric {number}: {metric['protocol']!r} is not a protocol{nearest(metric['protocol'], PROTOCOLS)}")
    if card["check"] is not None:
        _check_fields(card["check"], CHECK, f"{where}, check")


def check_name(name: str, where: str) -> str:
    if not SLUG.fullmatch(name):
        raise ZooError(f"{where}: {name[:80]!r} can't name a checkpoint; use lower-case letters, digits, dots, hyphens and underscores")
    return name


def _check_fields(value: Any, fields: dict[str, tuple], where: str) -> None:
    if not isinstance(value, dict):
        raise ZooError(f"{where} has to be a mapping, and is a {type(value).__name__}")
    for key in value:
        if key not in fields:
            raise ZooError(f"{where}: {key[:80]!r} is not a field of a card{nearest(key, fields)}")
    for key, kinds in fields.items():
        if key not in value:
            raise ZooError(f"{where} lacks {key}")
        if not isinstance(value[key], kinds) or (isinstance(value[key], bool) and bool not in kinds):
            raise ZooError(f"{where}: {key} has to be {' or '.join(kind.__name__ for kind in kinds)}, and is {str(value[key])[:80]!r}")
        if isinstance(value[key], float) and not math.isfinite(value[key]):
            raise ZooError(f"{where}: {key} is {value[key]}; it has to be a finite number")


def _check_plain(value: Any, where: str, depth: int) -> None:
    """Numbers, words, lists and mappings of them, a few levels deep."""
    if depth > 8:
        raise ZooError(f"{where} is nested too deep")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_plain(part, where, depth + 1)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    out = dict(pairs)
    if len(out) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ZooError(f"{next(key for key in keys if keys.count(key) > 1)[:80]!r} is given twice")
    return out


def _no_constant(name: str) -> None:
    raise ZooError(f"{name} is not a number that a card may hold")


def dump(card: dict) -> str:
    check(card, FILE)
    return json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# ---- the README that people see --------------------------------------------------------------------------------------------

def render(card: dict, pictures: list[str]) -> str:
    """README.md of a checkpoint, made from its card; text from the card is escaped."""
    name, data = card["name"], card["data"]
    lines = ["---", f"license: {json.dumps(card['license'])}", "library_name: timm", "pipeline_tag: image-feature-extraction",
             "tags: [self-supervised, pretext-zoo]", "---", "", f"# {_text(name)}", "", _text(card["summary"]), "",
             f"Task `{_code(card['task']['name'])}`, backbone `{_code(card['backbone']['name'])}` of {card['parameters']:,} parameters, trained on "
             f"{_text(data['name'])} ({_text(data['version'])}; {_text(data['license'])}) for {card['steps']:,} steps, "
             f"{card['samples_seen']:,} pictures, {card['minutes']:g} minutes on {_text(str(card['machine'].get('device')))} "
             f"({_text(str(card['machine'].get('cpu')))}, {card['machine'].get('threads')} threads), seed {card['seed']}, "
             f"commit {_text(str(card['commit']))}.", "",
             "```python", "import zoo", f'model, transform = zoo.load("{name}")', "```", "", "Without this package:", "", "```python", "import timm",
             'model = timm.create_model("local-dir:PATH", pretrained=True)', "```", ""]
    if card["metrics"]:
        lines += ["## Measured", "", "| features | protocol | labels | accuracy on " + _text(card["metrics"][0]["data"]) + " test | sd | runs |",
                  "|---|---|---|---|---|---|"]
        lines += [f"| {_text(m['features'])} | {m['protocol']} | {label_amount(m['labels'])} | {m['value']:.1f} | "
                  f"{'' if m['sd'] is None else format(m['sd'], '.1f')} | {m['seeds']} |" for m in card["metrics"]]
        lines += ["", f"Recomputed by `zoo reproduce {name}`.", ""]
    for picture in pictures:
        lines += [f"![{_text(picture)}]({picture})", ""]
    lines += ["## Data", "", _text(data["attribution"]), ""]
    return "\n".join(lines)


def label_amount(labels: float | int) -> str:
    """1.0 -> all, 0.01 -> 1 %, 5 -> 5 per class."""
    if isinstance(labels, int):
        return f"{labels} per class"
    return "all" if labels == 1.0 else f"{100 * labels:g} %"


def _text(value: str) -> str:
    value = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", value)


def _code(value: str) -> str:
    return str(value).replace("`", "'").replace("\n", " ")


def files(folder: Path, paths: list[str]) -> list[dict]:
    """The card's list of files: name, size and sha256 of each."""
    return [{"path": path, "size": (folder / path).stat().st_size, "sha256": sha256(folder / path)} for path in sorted(paths)]


def sha256(path: Path) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

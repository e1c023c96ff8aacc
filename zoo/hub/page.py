"""The README of a checkpoint, made from its card alone."""

from __future__ import annotations

import json
import re
from typing import Any

from zoo.card import label_amount


def render(card: dict) -> str:
    """README.md of a checkpoint, made from its card alone; text from the card is escaped."""
    name, data, machine = card["name"], card["data"], card["machine"]
    lines = [
        "---",
        *([f"license: {json.dumps(card['license'].lower())}"] if card["license"] else []),
        "library_name: timm",
        "pipeline_tag: image-feature-extraction",
        "tags: [self-supervised, pretext-zoo]",
        "---",
        "",
        f"# {_text(name)}",
        "",
        _text(card["summary"]),
        "",
        (
            f"Task `{_code(card['task']['name'])}`, backbone `{_code(card['backbone']['name'])}` of "
            f"{card['parameters']:,} parameters, "
            f"pretrained on {_text(data['name'])} for {card['steps']:,} steps, {card['samples_seen']:,} pictures, "
            f"{card['minutes']:g} minutes "
            f"on {_text(machine.get('device'))} ({_text(machine.get('cpu'))}, {_text(machine.get('threads'))} "
            f"threads), seed {card['seed']}, "
            f"commit {_text(card['commit'])}. Licence: {_text(card['license'] or 'none given yet')}."
        ),
        "",
        "```python",
        "import zoo",
        f'model, transform = zoo.load("{name}")',
        "```",
        "",
        "Without this package:",
        "",
        "```python",
        "import timm",
        'model = timm.create_model("local-dir:PATH", pretrained=True)',
        "```",
        "",
    ]
    if card["metrics"]:
        lines += [
            "## Measured",
            "",
            "| data | features | protocol | labels | accuracy on test, % | sd | runs |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {_text(m['data'])} | {_text(m['features'])} | {m['protocol']} | {label_amount(m['labels'])} | "
            f"{m['value']:.1f} | "
            f"{'' if m['sd'] is None else format(m['sd'], '.1f')} | {m['seeds']} |"
            for m in card["metrics"]
        ]
        commands = dict.fromkeys(_code(m["command"]) for m in card["metrics"])
        lines += ["", "Measured by:", "", *(f"    {command}" for command in commands), ""]
    for entry in card["files"]:
        if entry["path"].endswith(".png"):
            lines += [f"![{entry['path'].removesuffix('.png')}]({entry['path']})", ""]
    source = (
        f"{_text(data['name'])}, version {_text(data['version'])}, licence {_text(data['license'])}. "
        f"{_text(data['attribution'])}"
    )
    return "\n".join([*lines, "## Data", "", source.strip(), ""])


def _text(value: Any) -> str:
    """One line without markup; of a value that isn't text, its Python form."""
    value = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", value)


def _code(value: str) -> str:
    return " ".join(str(value).replace("`", "'").split())

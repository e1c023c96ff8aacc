"""Checkpoints to report on, and a page taken apart, for the tests of reports."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import torch
from card_example import METRIC, a_card

import zoo
from zoo.checkpoint.write import export
from zoo.grid import image_grid


def row(features="backbone", protocol="knn", labels=1.0, value=91.25, sd=0.5, **changes) -> dict:
    return METRIC | {"features": features, "protocol": protocol, "labels": labels, "value": value, "sd": sd} | changes


ROWS = [
    row(),
    row("random weights", value=71.5, sd=1.25),
    row("pixels", value=93.04, sd=None),
    row(protocol="linear", labels=0.01, value=88.88, sd=2.0),
    row("random weights", "linear", 0.01, 70.0, 0.04),
    row("pixels", "linear", 0.01, 88.91, 0.3),
    row(protocol="finetune", labels=5, value=62.0, sd=3.5),
]


def make(
    folder: Path,
    data: str = "digits",
    size: int = 16,
    channels: int = 1,
    fingerprint: str = "ab" * 32,
    seed: int = 0,
    **changes,
) -> Path:
    """A checkpoint that was really exported, of a network with random weights."""
    torch.manual_seed(seed)
    backbone = zoo.create_backbone("test_resnet", size=size)
    task = zoo.create_task("simclr", backbone, hidden=16, outputs=8)
    card = a_card(**{"metrics": ROWS, "seed": seed} | changes)
    card["data"] |= {"name": data, "size": size, "channels": channels, "fingerprint": fingerprint}
    return export(task, folder, card, {"views": image_grid(torch.rand(4, 1, 9, 9), columns=2)})


def elsewhere(folder: Path, **changes) -> Path:
    """A checkpoint whose data aren't at hand, so that its page is quick to write."""
    return make(folder, "cifar10", 32, 3, **changes)


def alter(folder: Path, change) -> None:
    """What somebody does who writes a card by hand."""
    card = json.loads((folder / "zoo.json").read_text())
    change(card)
    (folder / "zoo.json").write_text(json.dumps(card))


class Page(HTMLParser):
    """Tags, text, pictures and tables of a page. A table is a list of rows of (text, whether it is bold)."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict]] = []
        self.tables: list[list[list[tuple[str, bool]]]] = []
        self.words: list[str] = []
        self.cell: list[str] | None = None
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell, self.strong = [], False
        elif tag == "strong":
            self.strong = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append((" ".join("".join(self.cell).split()), self.strong))
            self.cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self.cell is not None:
            self.cell.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, css: str = "") -> list[dict]:
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and css in (attributes.get("class") or "").split() + [""]
        ]

    def cells(self, number: int = 0) -> list[list[str]]:
        return [[cell for cell, _ in line] for line in self.tables[number]]

    def bold(self, number: int = 0) -> list[str]:
        return [cell for line in self.tables[number] for cell, bold in line if bold]

    def pictures(self) -> list[bytes]:
        return [
            base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
            for image in self.all("img")
        ]

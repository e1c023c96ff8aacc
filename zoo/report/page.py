"""The page about one or more checkpoints: what each is, what it is worth, what it predicts, what it sees as alike, how
it was trained.
"""

from __future__ import annotations

import csv
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from zoo.card import check_metric, read_file
from zoo.errors import ZooError
from zoo.evaluate.study import Study
from zoo.paths import expanded, write_text
from zoo.report.charts import Series, lines
from zoo.report.markup import document, linked, pairs, picture, text
from zoo.report.results import bars_html, table_html, tables
from zoo.report.space import space_html

LARGEST = 8 * 1024 * 1024  # bytes of a picture; larger ones are left out
UNMEASURED = (
    "<p>Nothing has been measured yet; <code>zoo evaluate CHECKPOINT --save</code> writes numbers into the card.</p>"
)


@dataclass
class Checkpoint:
    """One checkpoint of the page: its folder and card, the rows to show, and what it is called here (`label`, and
    `anchor` in links).
    """

    study: Study
    rows: list[dict]
    label: str = ""
    anchor: str = ""

    @property
    def folder(self) -> Path:
        return self.study.folder

    @property
    def card(self) -> dict:
        return self.study.card


def write_page(path: str | Path, folders: str | Path | Sequence[str | Path], rows: list[dict] | None = None) -> Path:
    """Write one HTML file about checkpoints that needs nothing beside it; returns its path. The network isn't used for
    data sets.

    Args:
        path: the file; what was there is replaced.
        folders: checkpoints: their own folders, their runs' folders, or names in the hub. With several, a comparison
            comes first.
        rows: result rows as a card's metrics have them, for one checkpoint, in the place of those of its card.

    Raises ZooError for a folder without a checkpoint, damaged files, rows that are none, and a path that can't be
    written.
    """
    folders = [folders] if isinstance(folders, (str, Path)) else list(folders)
    shared: dict = {}
    by_place: dict[Path, Study] = {}
    for study in (Study(folder, download=False, shared=shared) for folder in folders):
        by_place.setdefault(study.folder.resolve(), study)
    found = list(by_place.values())
    if not found:
        raise ZooError("there is no checkpoint to report on; give at least one folder or name")
    if rows is not None and len(found) > 1:
        raise ZooError(
            f"rows belong to one checkpoint and {len(found)} are given; write each one's into its card (zoo evaluate "
            "--save), then leave "
            "out rows"
        )
    for number, row in enumerate(rows or []):
        check_metric(row, f"row {number}")
    checkpoints = [Checkpoint(study, study.card["metrics"] if rows is None else rows) for study in found]
    _name(checkpoints)
    several = len(checkpoints) > 1
    title = f"{len(checkpoints)} checkpoints compared" if several else checkpoints[0].label
    body = [_comparison(checkpoints, title)] if several else []
    body += [_article(checkpoint, "h2" if several else "h1") for checkpoint in checkpoints]
    return write_text(expanded(path), document(title, "\n".join(body)))


def _name(checkpoints: list[Checkpoint]) -> None:
    """Labels that tell the checkpoints apart: the name; the seed too, where several have that name; and a number, where
    that isn't enough.
    """
    for number, c in enumerate(checkpoints, 1):
        c.label, c.anchor = c.card["name"], f"c{number}"
    for more in ("seed", "number"):
        labels = [c.label for c in checkpoints]
        for number, c in enumerate(checkpoints, 1):
            if labels.count(labels[number - 1]) > 1:
                c.label += f", seed {c.card['seed']}" if more == "seed" else f" ({number})"


# ---- several checkpoints -------------------------------------------------------------------------


def _comparison(checkpoints: list[Checkpoint], title: str) -> str:
    words, numbers = ("checkpoint", "task", "backbone", "trained on"), ("parameters", "steps", "time", "memory")
    head = "".join(f'<th class="word" scope="col">{name}</th>' for name in words) + "".join(
        f'<th scope="col">{name}</th>' for name in numbers
    )
    body = []
    for c in checkpoints:
        card = c.card
        cells = [
            f'<th scope="row"><a href="#{c.anchor}">{text(c.label)}</a></th>',
            *(f'<td class="word">{text(card[key]["name"])}</td>' for key in ("task", "backbone", "data")),
            *(
                f"<td>{value}</td>"
                for value in (f"{card['parameters']:,}", f"{card['steps']:,}", _time(card["minutes"]), _memory(card))
            ),
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    found = tables([(c.label, c.card, c.rows) for c in checkpoints])
    return "\n".join(
        [
            '<section class="comparison">',
            '<p class="kicker">pretext zoo</p>',
            f"<h1>{title}</h1>",
            f'<div class="scroll" tabindex="0"><table class="overview"><thead><tr>{head}</tr></thead><tbody>',
            *body,
            "</tbody></table></div>",
            _results(found),
            "</section>",
        ]
    )


# ---- one checkpoint ------------------------------------------------------------------------------


def _article(c: Checkpoint, level: str) -> str:
    card = c.card
    found = tables([("", card, c.rows)])
    parts = [
        f'<article id="{c.anchor}">',
        f'<p class="kicker">Checkpoint of the pretext task {text(card["task"]["name"])}</p>',
        f"<{level}>{text(c.label)}</{level}>",
        f'<p class="lead">{linked(card["summary"])}</p>',
        _figures(card),
        _facts(card),
        "<h3>What it is worth</h3>",
        _results(found) if found else UNMEASURED,
    ]
    if pictures := _pictures(c):
        parts += ["<h3>What the task predicts</h3>", pictures]
    parts += ["<h3>What the representation sees as alike</h3>", space_html(c.study)]
    if curves := _curves(c.folder.parent / "metrics.csv"):
        parts += ["<h3>How it was trained</h3>", curves]
    return "\n".join(
        [
            *parts,
            "<h3>How to get these numbers again</h3>",
            _again(c),
            "<h3>Data and licence</h3>",
            _source(card),
            "</article>",
        ]
    )


def _figures(card: dict) -> str:
    """The handful of numbers that say how large all this is."""
    return pairs(
        "figures",
        [
            ("parameters", _short(card["parameters"])),
            ("steps", f"{card['steps']:,}"),
            ("pictures seen", _short(card["samples_seen"])),
            ("training time", _time(card["minutes"])),
            ("peak memory", _memory(card)),
        ],
    )


def _short(count: int) -> str:
    """1,234 -> 1,234; 372,688 -> 373 thousand; 76,800,000 -> 76.8 million."""
    if count < 10_000:
        return f"{count:,}"
    return (
        f"{count / 1e3:,.0f} <small>thousand</small>"
        if count < 999_500
        else f"{count / 1e6:,.1f} <small>million</small>"
    )


def _time(minutes: float) -> str:
    if minutes < 1:
        return f"{60 * minutes:.0f} <small>s</small>"
    return f"{minutes:.1f} <small>min</small>" if minutes < 100 else f"{minutes / 60:,.1f} <small>h</small>"


def _memory(card: dict) -> str:
    return f"{card['peak_memory_mb']:,.0f} <small>MB</small>"


def _facts(card: dict) -> str:
    data, machine = card["data"], card["machine"]
    kind = {1: "grey", 3: "colour"}.get(data["channels"], f"{data['channels']} channels")
    where = [str(machine[key]) for key in ("device", "cpu") if machine.get(key) not in (None, "", "cpu")]
    detail = [
        f"{machine[key]} {key[:-1] if machine[key] == 1 else key}" for key in ("cores", "threads") if key in machine
    ]
    detail += [machine["os"]] if "os" in machine else []
    return pairs(
        "facts",
        [
            ("Task", _named(card["task"])),
            ("Backbone", _named(card["backbone"])),
            (
                "Data",
                f"{text(data['name'])}<small>version {text(data['version'])}, {data['size']} × {data['size']} pixels, "
                f"{kind}</small>",
            ),
            ("Machine", f"{text(', '.join(where) or 'unknown')}<small>{text(', '.join(map(str, detail)))}</small>"),
            ("Date", text(card["created"])),
            ("Seed", str(card["seed"])),
            ("Commit", f"<code>{text(card['commit'])}</code>" if card["commit"] else "not known"),
            ("Licence", text(card["license"] or "none given yet")),
            *([("Parent", linked(card["parent"]))] if card["parent"] else []),
        ],
    )


def _named(values: dict) -> str:
    """A name, and its arguments beneath it."""
    arguments = ", ".join(
        f"{text(key)}&nbsp;{text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}"
        for key, value in values.items()
        if key != "name"
    )
    return text(values["name"]) + (f"<small>{arguments}</small>" if arguments else "")


def _results(found: list) -> str:
    parts = []
    for table in found:
        parts += [f"<h4>{text(table.data)}</h4>", table_html(table), bars_html(table)]
    return "\n".join(parts)


def _pictures(c: Checkpoint) -> str:
    """The PNG files of the checkpoint, by their names."""
    figures = []
    for entry in c.card["files"]:
        if not entry["path"].endswith(".png"):
            continue
        name = entry["path"].removesuffix(".png")
        drawn = picture(read_file(c.folder, c.card, entry["path"]), name) if entry["size"] <= LARGEST else None
        if drawn is None:
            figures.append(
                f'<p class="note">{text(entry["path"])} is left out: it is not a picture of a size that a page can '
                "show.</p>"
            )
        else:
            figures.append(f"<figure>{drawn}<figcaption>{text(name)}</figcaption></figure>")
    return "\n".join(['<div class="pictures">', *figures, "</div>"]) if figures else ""


# ---- curves --------------------------------------------------------------------------------------

# what the run's log may hold beside the loss: title, what it says, and how far down the axis reaches
CURVES = {
    "knn": ("Nearest neighbours", "accuracy in % on part of the validation split", None),
    "spread": ("Spread", "of the features: 1 fills the sphere, 0 is collapse", 0.0),
    "effective_rank": ("Effective rank", "directions that the features use", 0.0),
}


def _curves(path: Path) -> str:
    """Loss and online measures of the run whose log lies there; nothing where there is none."""
    logged = read_log(path)
    loss = [
        Series(name, logged[key], second, marks)
        for key, name, second, marks in (("loss", "training", False, False), ("val_loss", "validation", True, True))
        if key in logged
    ]
    figures = [lines("Loss", "", loss)] if loss else []
    figures += [
        lines(title, about, [Series(key, logged[key], marks=True)], ground)
        for key, (title, about, ground) in CURVES.items()
        if key in logged
    ]
    return "\n".join(["<p>Over optimizer steps.</p>", '<div class="curves">', *figures, "</div>"]) if figures else ""


def read_log(path: Path) -> dict[str, list[tuple[float, float]]]:
    """metrics.csv of a run -> for each column its points (step, value), by step; of a step logged twice, as after
    resuming, the last.

    What is no finite number is passed over, and a file that isn't there or can't be read is an empty log.
    """
    found: dict[str, dict[float, float]] = {}
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                step = _number(row.pop("step", None))
                for key, cell in row.items():
                    if step is not None and (value := _number(cell)) is not None:
                        found.setdefault(key, {})[step] = value
    except (OSError, csv.Error):
        return {}
    return {key: sorted(points.items()) for key, points in found.items()}


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


# ---- where it comes from -------------------------------------------------------------------------


def _again(c: Checkpoint) -> str:
    card, commands = c.card, dict.fromkeys(" ".join(row["command"].split()) for row in c.rows)
    parts = [f"<pre><code>{chr(10).join(map(text, commands))}</code></pre>"] if any(commands) else []
    if check := card["check"]:
        parts.append(
            f"<p>A quick check: nearest neighbours on {check['images']:,} pictures of {text(check['data'])} give "
            f"{check['value']:.1f} %, "
            f"to within {check['tolerance']:g} points. <code>zoo reproduce</code> compares every number of the "
            "card.</p>"
        )
    recipe = yaml.safe_dump(card["recipe"], sort_keys=False, allow_unicode=True, width=100)
    versions = ", ".join(f"{name} {version}" for name, version in card["packages"].items())
    parts += [
        "<details><summary>The recipe, which <code>zoo pretrain FILE.yaml</code> runs again</summary>",
        f"<pre><code>{html.escape(recipe)}</code></pre></details>",
        f"<details><summary>Versions of packages</summary><p>{text(versions)}</p></details>",
    ]
    return "\n".join(parts)


def _source(card: dict) -> str:
    data = card["data"]
    return (
        f"<p>Pretrained on {text(data['name'])}, version {text(data['version'])}, licence {text(data['license'])}. "
        f"{linked(data['attribution'])}</p>"
        f"<p>Licence of the checkpoint: {text(card['license'] or 'none given yet')}.</p>"
    )

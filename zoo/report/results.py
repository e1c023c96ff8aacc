"""Rows of measured results as tables and bars: the task's own features first, then what they have to beat."""

from __future__ import annotations

from dataclasses import dataclass, field

from zoo.card import PROTOCOLS, label_amount
from zoo.evaluate.baselines import PIXELS, RANDOM, RAW
from zoo.evaluate.protocols import PROTOCOLS as WAYS
from zoo.fields import height_width
from zoo.report.markup import text

# kinds of line in the order in which they are shown, by how the name of their features begins; everything else is the
# task's own
BASELINES = {"supervised": "supervised", RANDOM: "random"} | dict.fromkeys(RAW, "pixels")
KINDS = ("own", *dict.fromkeys(BASELINES.values()))

Column = tuple[
    int, bool, float
]  # place of the protocol, whether labels are per class, minus their number: sorts as shown


@dataclass
class Line:
    """One line of a table: whose features (`label`, and a `note` beside it), of what kind, and a result row for some of
    the columns.
    """

    label: str
    note: str
    kind: str
    cells: dict[Column, dict] = field(default_factory=dict)


@dataclass
class Table:
    """What was measured on one split of one data set."""

    data: str
    split: str
    lines: list[Line] = field(default_factory=list)

    @property
    def columns(self) -> list[Column]:
        return sorted({column for line in self.lines for column in line.cells})

    def best(self, column: Column) -> float:
        """The largest value of a column as it is shown, to a tenth of a percent."""
        return max(round(line.cells[column]["value"], 1) for line in self.lines if column in line.cells)


def tables(results: list[tuple[str, dict, list[dict]]]) -> list[Table]:
    """One table for each data set and split, from (label, card, result rows) of each checkpoint.

    Without a label, lines are called by their features; with labels, the task's own by the checkpoint, random weights
    by the backbone and pixels by their size, and baselines that several checkpoints share are shown once. A later row
    replaces an equal earlier one.
    """
    found: dict[tuple[str, str], Table] = {}
    for label, card, rows in results:
        fresh: dict[tuple, Line] = {}
        for row in rows:
            table = found.setdefault((row["data"], row["split"]), Table(row["data"], row["split"]))
            key = (row["data"], row["split"], row["features"])
            if key not in fresh:
                fresh[key] = _line(label, card, row["features"])
                table.lines.append(fresh[key])
            fresh[key].cells[_column(row)] = row
    for table in found.values():
        shown = {}
        for line in table.lines:
            shown.setdefault(_look(line) if line.kind != "own" else id(line), line)
        table.lines = sorted(shown.values(), key=lambda line: KINDS.index(line.kind))
    return list(found.values())


def _line(label: str, card: dict, features: str) -> Line:
    kind = next((kind for begin, kind in BASELINES.items() if features.startswith(begin)), "own")
    name = f"raw {features}" if features == PIXELS else features
    if not label:
        return Line(name, card["task"]["name"] if kind == "own" else "", kind)
    if kind == "own":
        return Line(label, features, kind)
    if features == PIXELS:
        return Line(name, " × ".join(map(str, height_width(card["data"]["size"]))), kind)
    if kind == "pixels":
        return Line(name, "", kind)
    return Line(name, card["backbone"]["name"], kind)


def _column(row: dict) -> Column:
    return PROTOCOLS.index(row["protocol"]), isinstance(row["labels"], int), -row["labels"]


def _look(line: Line) -> tuple:
    """Everything that can be seen of a line."""
    return (
        line.label,
        line.note,
        tuple(sorted((column, cell["value"], cell["sd"] or 0.0) for column, cell in line.cells.items())),
    )


def columns_title(column: Column) -> tuple[str, str]:
    """(protocol, amount of labels) as people say it."""
    place, per_class, minus = column
    amount = label_amount(int(-minus) if per_class else float(-minus))
    return WAYS[PROTOCOLS[place]].title, f"{amount} labels" if amount == "all" or amount.endswith("%") else amount


# ---- as HTML -------------------------------------------------------------------------------------


def table_html(table: Table) -> str:
    """A line for each features, a column for each protocol and amount of labels, the best of each column bold."""
    columns, first = table.columns, True
    body = []
    for line in table.lines:
        css = line.kind if line.kind == "own" else f"base {line.kind}" + (" first-base" if first and body else "")
        first = first and line.kind == "own"
        note = f"<small>{text(line.note)}</small>" if line.note else ""
        cells = "".join(_cell(line.cells.get(column), table, column) for column in columns)
        body.append(f'<tr class="{css}"><th scope="row">{text(line.label)}{note}</th>{cells}</tr>')
    return "\n".join(
        [
            '<div class="scroll" tabindex="0"><table>',
            f"<thead>{_head(columns)}</thead>",
            "<tbody>",
            *body,
            "</tbody></table></div>",
            f'<p class="note">{_caption(table)}</p>',
        ]
    )


def _head(columns: list[Column]) -> str:
    titles = [columns_title(column) for column in columns]
    groups = "".join(
        '<th class="group" scope="colgroup" '
        f'colspan="{sum(title == name for title, _ in titles)}"><span>{name}</span></th>'
        for name in dict.fromkeys(title for title, _ in titles)
    )
    amounts = "".join(f'<th scope="col">{amount}</th>' for _, amount in titles)
    return f'<tr><td></td>{groups}</tr><tr><th scope="col">features</th>{amounts}</tr>'


def _cell(row: dict | None, table: Table, column: Column) -> str:
    room = (
        "<small></small>"
        if any(line.cells[column]["sd"] is not None for line in table.lines if column in line.cells)
        else ""
    )
    if row is None:
        return f'<td class="none">–{room}</td>'
    value = f"{row['value']:.1f}"
    value = f"<strong>{value}</strong>" if round(row["value"], 1) == table.best(column) else value
    return f'<td title="{_seeds(row["seeds"])}">{value}{_deviation(row) or room}</td>'


def _deviation(row: dict) -> str:
    return "" if row["sd"] is None else f" <small>± {row['sd']:.1f}</small>"


def _caption(table: Table) -> str:
    cells = [row for line in table.lines for row in line.cells.values()]
    seeds = sorted({row["seeds"] for row in cells})
    many = f"{seeds[0]:,} to {_seeds(seeds[-1])}" if len(seeds) > 1 else _seeds(seeds[0])
    spread = f", mean ± standard deviation over {many}" if any(row["sd"] is not None for row in cells) else f", {many}"
    return (
        f"Accuracy on the {text(table.split)} split of {text(table.data)} in %{spread}. Bold: the best of a "
        "column. Bars run from 0 to 100 %."
    )


def _seeds(count: int) -> str:
    return f"{count:,} seed{'' if count == 1 else 's'}"


def bars_html(table: Table) -> str:
    """The same numbers as bars from 0 to 100 %, a panel for each column; a whisker is one standard deviation to either
    side.
    """
    panels = []
    for column in table.columns:
        protocol, amount = columns_title(column)
        bars = [_bar(line, line.cells[column]) for line in table.lines if column in line.cells]
        panels.append("\n".join([f'<div class="panel"><h4>{protocol}, {amount}</h4>', *bars, "</div>"]))
    return "\n".join(['<div class="panels">', *panels, "</div>"])


def _bar(line: Line, row: dict) -> str:
    whisker = ""
    if row["sd"]:
        low, high = _within(row["value"] - row["sd"]), _within(row["value"] + row["sd"])
        whisker = f'<b style="left:{low:.2f}%;width:{high - low:.2f}%"></b>'
    note = f" <small>{text(line.note)}</small>" if line.note else ""
    return (
        f'<div class="bar {line.kind}"><span class="of">{text(line.label)}{note}</span>'
        f'<span class="track"><i style="width:{_within(row["value"]):.2f}%"></i>{whisker}</span>'
        f'<span class="is">{row["value"]:.1f}{_deviation(row)}</span></div>'
    )


def _within(percent: float) -> float:
    return min(100.0, max(0.0, percent))

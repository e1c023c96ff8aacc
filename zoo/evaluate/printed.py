"""Measured rows as a table for the terminal."""

from __future__ import annotations

from zoo.card import label_amount


def print_table(rows: list[dict]) -> None:
    """One line per representation, one column per protocol and amount of labels; the best of a column is bold."""
    from rich.console import Console
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.table import Table

    console = Console()
    for name in dict.fromkeys(row["data"] for row in rows):
        here = [
            row | {"column": f"{row['protocol']}\n{label_amount(row['labels'])}"} for row in rows if row["data"] == name
        ]
        lacks = len({(row["features"], row["column"]) for row in here}) < len({row["features"] for row in here}) * len(
            {row["column"] for row in here}
        )
        table = Table(
            title=escape(f"accuracy on the test split of {name}, %, and the labels used"),
            title_justify="left",
            caption_justify="left",
            caption="-: these features have no network to fine-tune"
            if lacks and any(row["protocol"] == "finetune" for row in here)
            else None,
        )
        table.add_column("features")
        best = {
            row["column"]: max(other["value"] for other in here if other["column"] == row["column"]) for row in here
        }
        for column in best:
            table.add_column(column, justify="right", no_wrap=True)
        for features in dict.fromkeys(row["features"] for row in here):
            cells = {row["column"]: row for row in here if row["features"] == features}
            table.add_row(escape(features), *[_cell(cells.get(column), best[column]) for column in best])
        console.width = max(
            console.width, Measurement.get(console, console.options.update(max_width=1000), table).maximum
        )  # cuts no number off
        console.print(table)


def _cell(row: dict | None, best: float) -> str:
    if row is None:
        return "-"
    text = f"{row['value']:.1f}" + ("" if row["sd"] is None else f" ± {row['sd']:.1f}")
    return f"[bold]{text}[/bold]" if row["value"] == best else text

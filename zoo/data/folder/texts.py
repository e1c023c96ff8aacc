"""Folders of texts: a sample is a .txt file, a line of one, or a row of a table (.csv, .tsv or .jsonl)."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from zoo.data.folder.cache import VERSION, File, shown
from zoo.data.folder.layout import SPLITS, Layout, carve, layout_of, rows_of
from zoo.data.folder.scan import Content
from zoo.data.media.text import check_text, read_lines, read_text
from zoo.errors import ZooError, nearest

TEXT_COLUMNS, LABEL_COLUMNS = ("text", "caption", "sentence"), ("label", "class", "category")


@dataclass(frozen=True)
class Texts:
    """All texts of a folder, what its names and columns say of them, and a sha256 hex of both."""

    values: list[str]
    layout: Layout
    fingerprint: str


def texts_of(content: Content, lines: bool) -> Texts:
    """The texts of a folder, in memory.

    A table has a header (.jsonl: a key) with `text`, and may have `label`. Several tables are splits, by their names
    (train.csv, test.csv). Without a table each .txt is a sample; with `lines`, each line that isn't blank is one.

    Raises ZooError for a file that isn't UTF-8, has a NUL character or too long a line, for a table that can't be read,
    for fewer than two samples, and where every text is empty.
    """
    return _texts(content.root, tuple(content.tables), tuple(content.texts), lines)


@lru_cache(maxsize=2)  # a run asks for the entry first and for the texts later
def _texts(root: Path, tables: tuple[File, ...], texts: tuple[File, ...], lines: bool) -> Texts:
    if tables:
        values, layout = _of_tables(root, tables)
    else:
        values, layout = _of_files(root, texts, lines)
    check_some(values, root)
    mark = hashlib.sha256(f"texts {VERSION}\n{json.dumps(layout.classes)}\n".encode())
    labels = layout.labels or [0] * len(values)
    for value, label in zip(values, labels, strict=True):
        mark.update(f"{label}\0{value}\0".encode())
    for name, rows in layout.splits.items():
        mark.update(f"{name} {rows}\n".encode())
    return Texts(values, layout, mark.hexdigest())


def check_some(values: list[str], root: Path) -> None:
    """Raises ZooError where every text is empty."""
    if not any(value.strip() for value in values):
        raise ZooError(
            f"{shown(root)} has no text at all: each of its {len(values):,} texts is empty; give texts with words"
        )


def _of_files(root: Path, texts: tuple[File, ...], lines: bool) -> tuple[list[str], Layout]:
    if lines:
        read = ((file.path, line) for file in texts for _, line in read_lines(root / file.path))
        rows = [(path, line.rstrip("\r\n")) for path, line in read if line.strip()]
        paths, values = [path for path, _ in rows], [line for _, line in rows]
    else:
        paths, values = [file.path for file in texts], [read_text(root / file.path) for file in texts]
    if len(values) < 2:
        raise ZooError(
            f"{shown(root)} holds {len(values)} {'line' if lines else 'text'}{'s'[: len(values) != 1]}, and at least "
            "two are needed; give more"
        )
    return values, layout_of(paths, root, values if lines else None)  # equal lines go into one split


def _of_tables(root: Path, tables: tuple[File, ...]) -> tuple[list[str], Layout]:
    names = [Path(file.path).stem.lower() for file in tables]
    given = [SPLITS.get(name) for name in names]
    if len(tables) > 1 and (None in given or "train" not in given or len(set(given)) < len(given)):
        raise ZooError(
            f"{shown(root)} holds {len(tables)} tables ({', '.join(shown(file.path) for file in tables[:3])}); leave "
            "one there, or name them train, val and test"
        )
    values, labels, split_of = [], [], []
    for file, split in zip(tables, given if len(tables) > 1 else ["train"], strict=True):
        for where, text, label in _rows(root / file.path):
            if labels and (label is None) != (labels[0] is None):
                raise ZooError(f"{where}: the row has {'no' if label is None else 'a'} label, unlike those before it")
            values.append(text)
            labels.append(label)
            split_of.append(split)
    if len(values) < 2:
        raise ZooError(f"{shown(root / tables[0].path)} has {len(values)} rows, and at least two are needed; add some")
    if labels[0] is None:
        classes, numbers, why = (), None, f"{shown(tables[0].path)} has no column {LABEL_COLUMNS[0]}"
    else:
        classes = tuple(sorted(set(labels), key=_order))
        number, why = {name: k for k, name in enumerate(classes)}, ""
        numbers = [number[label] for label in labels]
    pool = [row for row, split in enumerate(split_of) if split == "train"]
    absent = [split for split in ("validation", "test") if split not in split_of]
    for row, split in carve(values, pool, numbers or [0] * len(values), absent).items():
        split_of[row] = split
    return values, Layout(tuple(classes), numbers, rows_of(split_of), why)


def _order(label: str) -> tuple:
    """Numbers by their value, before words."""
    return (0, int(label), label) if label.isdecimal() and len(label) < 10 else (1, 0, label)


def _rows(path: Path) -> Iterator[tuple[str, str, str | None]]:
    """(where, text, label) of each row of a table."""
    rows = _json_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    text_key = label_key = None
    for where, row in rows:
        if text_key is None:
            text_key = next((key for key in TEXT_COLUMNS if key in row), None)
            label_key = next((key for key in LABEL_COLUMNS if key in row), None)
            if text_key is None:
                known = ", ".join(map(str, list(row)[:10]))
                raise ZooError(
                    f"{shown(path)} has no column {TEXT_COLUMNS[0]}; its columns are {known}"
                    f"{nearest(TEXT_COLUMNS[0], list(map(str, row)))}"
                )
        text, label = row.get(text_key), row.get(label_key) if label_key else None
        if not isinstance(text, str):
            raise ZooError(f"{where}: {text_key} is {str(text)[:50]}, and it has to be text")
        if label is not None and (isinstance(label, bool) or not isinstance(label, (str, int))):
            raise ZooError(f"{where}: {label_key} is {str(label)[:50]}, and it has to be a word or a whole number")
        label = None if label is None or label == "" else check_text(str(label), where)
        yield where, check_text(text, where), label


def _csv_rows(path: Path) -> Iterator[tuple[str, dict]]:
    lines = (line for _, line in read_lines(path))
    reader = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    header = None
    try:
        for row in reader:
            where = f"{shown(path)}, line {reader.line_num:,}"
            if header is None:
                header = [name.strip() for name in row]
            elif row:
                if len(row) != len(header):
                    raise ZooError(f"{where}: the row has {len(row)} values and the header {len(header)}; quote commas")
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ZooError(f"{shown(path)}, line {reader.line_num:,}: the table can't be read ({error})") from error


def _json_rows(path: Path) -> Iterator[tuple[str, dict]]:
    for number, line in read_lines(path):
        where = f"{shown(path)}, line {number:,}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ZooError(f"{where}: the line isn't JSON ({str(error)[:80]})") from error
        if not isinstance(row, dict):
            raise ZooError(f'{where}: the line is no object; write {{"text": "..."}}')
        yield where, row

"""What a checkpoint is worth: its representation beside random weights and the samples as they are, in rows that a card
can hold.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable
from pathlib import Path

from zoo.card import label_amount, read_card
from zoo.checkpoint.write import update_card
from zoo.data.module import ZooData
from zoo.errors import ZooError, nearest
from zoo.evaluate.banks import Candidate
from zoo.evaluate.labels import require_amount
from zoo.evaluate.protocols import PROTOCOLS
from zoo.evaluate.study import Study, doing

Pair = tuple[str, float | int]  # protocol and amount of labels


def evaluate(
    checkpoint: str | Path,
    data: str | None = None,
    protocols: tuple[str, ...] = ("knn", "linear"),
    labels: tuple[float | int, ...] = (1.0, 0.01),
    hub: str | Path | None = None,
    save: bool = False,
    baselines: bool = True,
) -> list[dict]:
    """Measure a checkpoint; returns rows {protocol, features, data, split, labels, value, sd, seeds, command}, value in
    percent.

    Args:
        checkpoint: a folder of a checkpoint or run, or a name in the hub.
        data: a set with labels, by default the one it was trained on, which an imported checkpoint doesn't know.
        protocols: of knn, linear and finetune.
        labels: amounts, each a share of the training labels (float) or so many per class (int).
        save: write the rows into the card, in place of those they repeat.
        baselines: with the rows of random weights and of the samples as they are.

    Features are extracted once and kept in the cache, so that another protocol is quick. Raises ZooError for an unknown
    checkpoint, data set or protocol, an amount that isn't one, data that a protocol can't be measured on, and, to save,
    a card that can't be changed; all of it before anything is measured.
    """
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ZooError(f"{protocol!r} is not a protocol{nearest(protocol, PROTOCOLS)}")
    for amount in labels:
        require_amount(amount)
    study = Study(checkpoint, data, hub)
    if save:
        update_card(study.folder)  # changes nothing yet, but says what can't be changed
    rows = measure_study(study, [(protocol, amount) for protocol in protocols for amount in labels], baselines)
    if save:
        new = {row_key(row) for row in rows}
        metrics = read_card(study.folder)["metrics"]  # another process may have added some
        update_card(study.folder, metrics=[row for row in metrics if row_key(row) not in new] + rows)
    return rows


def measure_study(study: Study, pairs: Iterable[Pair], baselines: bool = True) -> list[dict]:
    """The rows of `evaluate` for exactly these pairs. Raises ZooError, before anything is extracted, for a protocol
    that can't be measured here and for more labels than there are.
    """
    pairs = list({(protocol, type(amount), amount): (protocol, amount) for protocol, amount in pairs}.values())
    for protocol in dict.fromkeys(protocol for protocol, _ in pairs):
        if (why := PROTOCOLS[protocol].refusal(study)) is not None:
            raise ZooError(why)
    for _, amount in pairs:
        study.choose(amount, 0)
    second = study.card["schema"] > 1  # whose rows have a unit
    return [
        row
        | {"data": study.name, "command": _command(study, row["protocol"], row["labels"])}
        | ({"unit": PROTOCOLS[row["protocol"]].unit} if second else {})
        for row in measure(study.candidates(baselines), study.data, pairs)
    ]


def measure(candidates: list[Candidate], data: ZooData, pairs: Iterable[Pair]) -> list[dict]:
    """Rows of every candidate for each pair of protocol and amount of labels; the test split is read once for each
    value.
    """
    rows = []
    for protocol, amount in pairs:
        for candidate in filter(PROTOCOLS[protocol].takes, candidates):
            with doing(f"measuring {candidate.name}: {protocol}, labels: {label_amount(amount)}"):
                rows.append(_row(candidate, protocol, amount, data))
    return rows


def row_key(row: dict) -> tuple:
    """What a row is about: two rows of the same key are measurements of the same."""
    return row["protocol"], row["features"], row["data"], type(row["labels"]).__name__, row["labels"]


def _row(candidate: Candidate, protocol: str, amount: float | int, data: ZooData) -> dict:
    values = PROTOCOLS[protocol].measure(candidate, data, amount)
    return {
        "protocol": protocol,
        "features": candidate.name,
        "data": data.dataset.info.name,
        "split": "test",
        "labels": amount,
        "value": round(statistics.mean(values), 2),
        "sd": round(statistics.stdev(values), 2) if len(values) > 1 else None,
        "seeds": len(values),
    }


def _command(study: Study, protocol: str, amount: float | int) -> str:
    return (
        f"zoo evaluate {study.card['name']} --data {shlex.quote(study.name)} --protocols {protocol} --labels {amount}"
    )

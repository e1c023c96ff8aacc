"""The numbers of a card, measured again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.card import label_amount
from zoo.errors import ZooError
from zoo.evaluate.baselines import is_baseline
from zoo.evaluate.check import check_of
from zoo.evaluate.study import Study
from zoo.evaluate.table import measure_study, row_key

TOLERANCE = 0.5  # points by which a value may differ and still hold


def reproduce(checkpoint: str | Path, hub: str | Path | None = None) -> list[dict]:
    """Recompute the metrics of a card, its check among them; returns {row, was, now, holds} for each.

    A value holds when it is within half a point of the card's; for fine-tuning, which rounding can steer, within its
    standard deviation if that is more. Raises ZooError for a card without metrics.
    """
    first = Study(checkpoint, hub=hub)
    card = first.card
    if not card["metrics"] and card["check"] is None:
        raise ZooError(
            f"the card of {checkpoint} has no metrics to reproduce; write some into it by:  zoo evaluate {checkpoint} "
            "--save"
        )
    names = dict.fromkeys([*([card["check"]["data"]] if card["check"] else []), *(m["data"] for m in card["metrics"])])
    out = []
    for name in names:
        study = first.on(name)
        if card["check"] and card["check"]["data"] == name:
            out.append(_check(study))
        out += _metrics(study, [metric for metric in card["metrics"] if metric["data"] == name])
    return out


def _check(study: Study) -> dict[str, Any]:
    check = study.card["check"]
    row = f"check: {check['protocol']} on {check['images']:,} images of {check['data']}"
    return _verdict(row, check["value"], check_of(study), check["tolerance"])


def _metrics(study: Study, was: list[dict]) -> list[dict]:
    """A verdict for each row of the card on the study's data."""
    if not was:
        return []
    baselines = any(is_baseline(metric["features"]) for metric in was)
    rows = measure_study(study, [(metric["protocol"], metric["labels"]) for metric in was], baselines)
    now = {row_key(row): row["value"] for row in rows}
    return [
        _verdict(
            f"{metric['protocol']}, {metric['features']}, labels: {label_amount(metric['labels'])}, on {study.name}",
            metric["value"],
            now.get(row_key(metric)),
            max(TOLERANCE, metric["sd"] or 0.0) if metric["protocol"] == "finetune" else TOLERANCE,
        )
        for metric in was
    ]


def _verdict(row: str, was: float, now: float | None, slack: float) -> dict[str, Any]:
    return {"row": row, "was": was, "now": now, "holds": now is not None and abs(now - was) <= slack + 1e-9}

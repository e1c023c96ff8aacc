"""What a checkpoint is worth: its representation beside random weights and raw pixels, in rows that a card can hold.

    knn       weighted vote of the nearest labelled images; k chosen on validation
    linear    logistic regression on standardised frozen features, to its optimum; penalty chosen on validation
    finetune  the whole network; the best state on validation

The test split is read once for each value. With fewer labels than all, a value is the mean over several draws of which
labels those are, and `sd` their standard deviation; random weights are the mean over several draws of the weights.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.backbones import create_backbone
from zoo.card import bad_samples_of, label_amount, read_card
from zoo.checkpoint.write import update_card
from zoo.data.datasets import data_info
from zoo.data.module import ZooData, create_data
from zoo.draws import Draw, counted
from zoo.errors import ZooError, nearest
from zoo.evaluate.banks import (
    OWN,
    PIXELS,
    RANDOM,
    Bank,
    choose_labelled,
    extract,
    labels_of,
    raw_pixels,
    require_amount,
    require_labels,
)
from zoo.evaluate.finetune import FineTuning, finetune, predict
from zoo.evaluate.knn import accuracy, choose_k, knn
from zoo.evaluate.linear import Probe, fit_probe
from zoo.machine.devices import best_device
from zoo.registry import IMPORTED
from zoo.tasks.base import PretextTask
from zoo.tasks.create import create_task
from zoo.tasks.load import load_task

PROTOCOLS = ("knn", "linear", "finetune")
DRAWS, FINETUNE_DRAWS = 5, 3  # of the labels, where not all are used
NETWORKS = 3  # draws of random weights
CHECK_IMAGES = 2000
TOLERANCE = 0.5  # points by which a value may differ and still hold

Pair = tuple[str, float | int]  # protocol and amount of labels


@dataclass
class Candidate:
    """A row of the table in the making: one representation, of one network or several."""

    name: str
    banks: list[Bank]
    tasks: list[PretextTask]  # the networks, where they can be fine-tuned; else none


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
        baselines: with the rows of random weights and raw pixels.

    Raises ZooError for an unknown checkpoint, data set or protocol, an amount that isn't one, data without labels, and,
    to save, a card that can't be changed; all of it before anything is measured.
    """
    from zoo.hub.hub import find

    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ZooError(f"{protocol!r} is not a protocol{nearest(protocol, PROTOCOLS)}")
    for amount in labels:
        require_amount(amount)
    folder = find(checkpoint, hub)
    card = update_card(folder) if save else read_card(folder)  # changes nothing yet, but says what can't be changed
    if data is None and card["task"]["name"] == IMPORTED:
        raise ZooError(
            f"{checkpoint} was imported, and its card doesn't say what data it was trained on; name a set with labels "
            "to measure it on, as "
            f"in  zoo evaluate {checkpoint} --data NAME  or --data folder:PATH"
        )
    rows = measure_checkpoint(
        folder,
        card,
        data or card["data"]["name"],
        [(protocol, amount) for protocol in protocols for amount in labels],
        baselines,
    )
    if save:
        new = {_key(row) for row in rows}
        update_card(folder, metrics=[row for row in read_card(folder)["metrics"] if _key(row) not in new] + rows)
    return rows


def reproduce(checkpoint: str | Path, hub: str | Path | None = None) -> list[dict]:
    """Recompute the metrics of a card, its check among them; returns {row, was, now, holds} for each.

    A value holds when it is within half a point of the card's; for fine-tuning, which rounding can steer, within its
    standard deviation if that is more. Raises ZooError for a card without metrics.
    """
    from zoo.hub.hub import find

    folder = find(checkpoint, hub)
    card = read_card(folder)
    if not card["metrics"] and card["check"] is None:
        raise ZooError(
            f"the card of {checkpoint} has no metrics to reproduce; write some into it by:  zoo evaluate {checkpoint} "
            "--save"
        )
    out = []
    if (check := card["check"]) is not None:
        now = check_metric(
            load_task(folder),
            create_data(check["data"], size=card["data"]["size"], **bad_samples_of(card, check["data"])),
        )
        out.append(
            _verdict(
                f"check: {check['protocol']} on {check['images']:,} images of {check['data']}",
                check["value"],
                now,
                check["tolerance"],
            )
        )
    for name in dict.fromkeys(metric["data"] for metric in card["metrics"]):
        was = [metric for metric in card["metrics"] if metric["data"] == name]
        baselines = any(metric["features"] in (RANDOM, PIXELS) for metric in was)
        now = {
            _key(row): row["value"]
            for row in measure_checkpoint(
                folder, card, name, [(metric["protocol"], metric["labels"]) for metric in was], baselines
            )
        }
        for metric in was:
            slack = max(TOLERANCE, metric["sd"] or 0.0) if metric["protocol"] == "finetune" else TOLERANCE
            out.append(
                _verdict(
                    f"{metric['protocol']}, {metric['features']}, labels: {label_amount(metric['labels'])}, on {name}",
                    metric["value"],
                    now.get(_key(metric)),
                    slack,
                )
            )
    return out


def check_metric(task: PretextTask, data: ZooData) -> float | None:
    """Percent of 2,000 validation images that the 20 nearest of 2,000 training images vote right; None without labels.

    Quick enough to recompute for every checkpoint of a hub.
    """
    info = data.dataset.info
    if "label" not in info.fields or not info.splits.get("validation"):
        return None
    bank = extract(task, data, ("train", "validation"), CHECK_IMAGES)[OWN]
    found = knn(
        bank.x["train"], bank.y["train"], bank.x["validation"], min(20, len(bank.x["train"])), len(info.classes)
    )
    return round(accuracy(found, bank.y["validation"]), 2)


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


# ---- measuring -----------------------------------------------------------------------------------


def measure_checkpoint(folder: Path, card: dict, name: str, pairs: list[Pair], baselines: bool = True) -> list[dict]:
    """The rows of `evaluate` for a checkpoint in `folder` on the set `name`, of exactly these pairs; features are
    extracted once for all of them.
    """
    pairs = list(
        {(protocol, type(amount), amount): (protocol, amount) for protocol, amount in pairs}.values()
    )  # 1 is not 1.0 here
    require_labels(data_info(name))
    with _doing(f"reading {name}"):
        data = create_data(name, size=card["data"]["size"], **bad_samples_of(card, name))
    for _, amount in pairs:  # a ZooError now, not after the measuring
        choose_labelled(labels_of(data)["train"], amount, 0, data.dataset.info.classes)
    with _doing("extracting features"):
        candidates = task_candidates(load_task(folder), data) + (baseline_candidates(card, data) if baselines else [])
    return [
        row | {"data": name, "command": _command(card, name, row["protocol"], row["labels"])}
        for row in measure(candidates, data, pairs)
    ]


def measure(candidates: list[Candidate], data: ZooData, pairs: list[Pair]) -> list[dict]:
    """Rows of every candidate for each pair of protocol and amount of labels; the test split is read once for each
    value.
    """
    rows = []
    for protocol, amount in pairs:
        for candidate in candidates:
            if protocol == "finetune" and not candidate.tasks:
                continue
            with _doing(f"measuring {candidate.name}: {protocol}, labels: {label_amount(amount)}"):
                rows.append(_row(candidate, protocol, amount, data))
    return rows


def _laid_out(task: PretextTask) -> PretextTask:
    """On the best device, and there in the memory layout in which convolutions are quick; only the rounding of sums is
    another.
    """
    return task.to(best_device()).to(memory_format=torch.channels_last)


def task_candidates(task: PretextTask, data: ZooData) -> list[Candidate]:
    """Every representation that the task offers; its backbone's can be fine-tuned."""
    task = _laid_out(task)
    return [Candidate(name, [bank], [task] if name == OWN else []) for name, bank in extract(task, data).items()]


def baseline_candidates(card: dict, data: ZooData) -> list[Candidate]:
    """The same network with random weights, some times over; and raw pixels."""
    tasks = [_laid_out(random_task(card, draw)) for draw in range(NETWORKS)]
    return [
        Candidate(RANDOM, [extract(task, data)[OWN] for task in tasks], tasks),
        Candidate(PIXELS, [raw_pixels(data)], []),
    ]


def random_task(card: dict, draw: int) -> PretextTask:
    """The card's task and backbone with fresh weights, another set of them for each `draw`, in eval mode; a BatchNorm
    has seen no picture.
    """
    backbone, task = dict(card["backbone"]), dict(card["task"])
    with counted(torch.device("cpu"), draw, Draw.RANDOM_WEIGHTS):
        made = create_backbone(backbone.pop("name"), size=card["data"]["size"], **backbone)
        return create_task(task.pop("name"), made, **task).eval()


def _row(candidate: Candidate, protocol: str, amount: float | int, data: ZooData) -> dict:
    full = isinstance(amount, float) and amount == 1.0
    classes, y = data.dataset.info.classes, candidate.banks[0].y
    if protocol == "finetune":  # dear: as many runs as there are draws or networks, whichever are more
        runs = range(max(1 if full else FINETUNE_DRAWS, len(candidate.tasks)))
        networks = zip(candidate.tasks, candidate.banks, strict=True)
        values = [
            finetuned(task, bank, data, choose_labelled(y["train"], amount, run, classes), tuning_for(task, run))
            for run, (task, bank) in zip(runs, itertools.cycle(networks), strict=False)
        ]
    else:
        chosen = [choose_labelled(y["train"], amount, draw, classes) for draw in range(1 if full else DRAWS)]
        values = [frozen(protocol, bank, rows, len(classes)) for bank in candidate.banks for rows in chosen]
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


def frozen(protocol: str, bank: Bank, rows: Tensor, classes: int) -> float:
    """Percent right on the test split of knn or linear, with the labels of the training images `rows` (n,)."""
    x, y = bank.x["train"][rows], bank.y["train"][rows]
    if protocol == "knn":
        k, _ = choose_k(x, y, bank.x["validation"], bank.y["validation"], classes)
        return accuracy(knn(x, y, bank.x["test"], k, classes), bank.y["test"])
    return accuracy(probe_of(bank, rows, classes).predict(bank.x["test"]), bank.y["test"])


def probe_of(bank: Bank, rows: Tensor, classes: int) -> Probe:
    """The linear probe fitted on the training images `rows`, its penalty chosen on validation."""
    return fit_probe(bank.x["train"][rows], bank.y["train"][rows], bank.x["validation"], bank.y["validation"], classes)


def finetuned(task: PretextTask, bank: Bank, data: ZooData, rows: Tensor, how: FineTuning) -> float:
    """Percent right on the test split of the task's backbone, fine-tuned from its probe on the training images `rows`
    (n,).
    """
    probe = probe_of(bank, rows, len(data.dataset.info.classes))
    model = finetune(task.backbone, probe, data, rows, how)
    return accuracy(predict(model, data, "test"), bank.y["test"])


def tuning_for(task: PretextTask, seed: int) -> FineTuning:
    """Fine-tuning mirrors pictures only if the pretext task did: it knows whether they have a handedness."""
    return FineTuning(flip=0.5 if task.arguments.get("flip", 0.0) > 0 else 0.0, seed=seed)


# ---- small ---------------------------------------------------------------------------------------


def _key(row: dict) -> tuple:
    return row["protocol"], row["features"], row["data"], type(row["labels"]).__name__, row["labels"]


def _command(card: dict, name: str, protocol: str, amount: float | int) -> str:
    return f"zoo evaluate {card['name']} --data {shlex.quote(name)} --protocols {protocol} --labels {amount}"


def _verdict(row: str, was: float, now: float | None, slack: float) -> dict[str, Any]:
    return {"row": row, "was": was, "now": now, "holds": now is not None and abs(now - was) <= slack + 1e-9}


@contextlib.contextmanager
def _doing(what: str) -> Iterator[None]:
    """A line that says what takes so long, where a person looks on."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(what) if console.is_terminal else contextlib.nullcontext():
        yield

"""A checkpoint and a data set: the one place that joins card, task, data, features and baselines."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import __version__
from zoo.card import bad_samples_of, given_by_data, read_card, towers_of
from zoo.data.datasets import data_info, load_data
from zoo.data.info import DataInfo
from zoo.data.module import ZooData, create_data
from zoo.errors import ZooError
from zoo.evaluate import kept
from zoo.evaluate.banks import Bank, Candidate, banks_of, extract_split
from zoo.evaluate.baselines import NETWORKS, RANDOM, random_task, raw_rows
from zoo.evaluate.labels import SPLITS, choose_labelled, labels_of
from zoo.hub.hub import find
from zoo.machine.devices import best_device
from zoo.registry import IMPORTED, find_task
from zoo.tasks.base import PretextTask
from zoo.tasks.load import load_task

PRECISION = "float32"  # in which features are extracted


class Study:
    """What a checkpoint is worth on a data set. Each part is read when it is first asked for, and once.

    Args:
        checkpoint: a folder of a checkpoint or run, or a name in the hub.
        data: a data set's name; by default the one that the checkpoint was trained on.
        hub: where names of checkpoints are looked up.
        download: whether data may be got from the network.
        shared: data sets in memory, which several studies share.

    Features of whole splits are kept in the cache, one file for each network, data set, precision and split. Raises
    ZooError for an unknown checkpoint; the parts raise it for what they can't read.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        data: str | None = None,
        hub: str | Path | None = None,
        download: bool = True,
        shared: dict[tuple, ZooData] | None = None,
    ):
        self.checkpoint, self.folder = checkpoint, find(checkpoint, hub)
        self.card = read_card(self.folder, hashed=False)  # `find` has compared every sha256
        self.download, self._shared = download, {} if shared is None else shared
        self._data = data
        kept.limit()  # a mistake in the environment shows now

    @classmethod
    def of(cls, task: PretextTask, data: ZooData) -> Study:
        """Of a task that is in memory and has no checkpoint yet. Its features aren't kept."""
        study = cls.__new__(cls)
        study.__dict__ |= {"card": None, "task": task, "data": data, "info": data.dataset.info}
        return study

    def on(self, data: str) -> Study:
        """The same checkpoint on another data set."""
        other = type(self).__new__(type(self))
        shared = ("checkpoint", "folder", "card", "download", "_shared", "task", "towers", "_random_tasks")
        other.__dict__ |= {key: value for key, value in self.__dict__.items() if key in shared} | {"_data": data}
        return other

    # ---- the parts -------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """The name of the data set. Raises ZooError for an imported checkpoint whose data nobody named."""
        if self._data is None and self.card["task"]["name"] == IMPORTED:
            raise ZooError(
                f"{self.checkpoint} was imported, and its card doesn't say what data it was trained on; name a set "
                f"with labels to measure it on, as in  zoo evaluate {self.checkpoint} --data NAME  or --data "
                "folder:PATH"
            )
        return self.card["data"]["name"] if self._data is None else self._data

    @cached_property
    def info(self) -> DataInfo:
        """What is known of the data set without reading it."""
        return data_info(self.name)

    @cached_property
    def data(self) -> ZooData:
        size = given_by_data(self.card, "image")["size"] or None
        given = {"size": size, **bad_samples_of(self.card, self.name)}
        key = (self.name, *given.values())
        if key not in self._shared:
            with doing(f"reading {self.name}"):
                self._shared[key] = (
                    create_data(self.name, **given)
                    if self.download
                    else ZooData(load_data(self.name, download=False, **given))
                )
        return self._shared[key]

    @cached_property
    def task(self) -> PretextTask:
        """The checkpoint's task, laid out for the best device."""
        return laid_out(load_task(self.folder, self.card))

    @cached_property
    def towers(self) -> dict[str, str]:
        """The networks of the checkpoint: tower -> kind of field that it reads. The first tower comes first."""
        entries = sorted(towers_of(self.card).items(), key=lambda entry: entry[1]["folder"] != "")
        return {name: entry["reads"] for name, entry in entries}

    @property
    def first(self) -> str:
        """The name of the first tower, whose weights lie at the top of the checkpoint."""
        return next(iter(self.towers))

    @cached_property
    def labels(self) -> dict[str, Tensor]:
        """Labels int64 (n,) of each split."""
        return labels_of(self.data)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.data.dataset.info.classes

    def choose(self, amount: float | int, draw: int) -> Tensor:
        """Rows of the training split whose labels may be used: an amount of them, see `choose_labelled`."""
        return choose_labelled(self.labels["train"], amount, draw, self.classes)

    # ---- features --------------------------------------------------------------------------------
    @cached_property
    def banks(self) -> dict[str, Bank]:
        """Every representation of the task by name, of all splits; the first is a network's own."""
        return self.some_banks(dict.fromkeys(SPLITS))

    @property
    def own(self) -> Bank:
        """The features of the first tower, or the first ones there are where the data lack its field."""
        return self.banks.get(self.first) or next(iter(self.banks.values()))

    def some_banks(self, most: dict[str, int | None]) -> dict[str, Bank]:
        """`banks` of these splits alone, and of at most so many samples of each."""
        if self.card is None:
            features = {split: extract_split(self.task, self.data, split, count) for split, count in most.items()}
        else:
            network = _network(self.card, self.card["files"])
            features = {
                split: self._features(network, lambda: self.task, split, count) for split, count in most.items()
            }
        return banks_of(features, self.data, most)

    def random_network(self, draw: int) -> tuple[PretextTask, Bank]:
        """The same networks with random weights, another set of them for each draw, and the first one's features."""
        task, banks = self._random_banks(draw)
        return task, banks.get(self.first) or next(iter(banks.values()))

    def _random_banks(self, draw: int) -> tuple[PretextTask, dict[str, Bank]]:
        learned = [entry for entry in self.card["files"] if entry["path"].endswith("tokenizer.json")]
        network = _network(self.card, learned) | {"draw": draw}
        features = {split: self._features(network, lambda: self._random(draw), split) for split in SPLITS}
        return self._random(draw), banks_of(features, self.data)

    def _random(self, draw: int) -> PretextTask:
        if draw not in self._random_tasks:
            self._random_tasks[draw] = laid_out(random_task(self.card, draw, self.task))
        return self._random_tasks[draw]

    @cached_property
    def _random_tasks(self) -> dict[int, PretextTask]:
        return {}

    @cached_property
    def raw(self) -> dict[str, Bank]:
        """The samples as they are, by name, for each field that a tower reads."""
        fields = [field for field in dict.fromkeys(self.towers.values()) if field in self.data.dataset.fields]
        found = [raw_rows(self.data, field) for field in fields]
        return dict(row for row in found if row is not None)

    def _features(self, network: dict[str, Any], task: Any, split: str, most: int | None = None) -> dict[str, Tensor]:
        """Features (n, D) of a split by name: kept ones, or extracted ones, which are kept."""
        data = self.data
        whole = most is None or most >= len(data.dataset.splits[split])
        identity = network | {
            "code": _code(find_task(self.card["task"]["name"])),
            "data": data.dataset.fingerprint,
            "split": split,
            "samples": None if whole else most,
            "precision": PRECISION,
            "device": best_device().type,
        }
        found = kept.recall(identity)
        if found is None:
            with doing("extracting features"):
                found = extract_split(task(), data, split, None if whole else most)
            kept.keep(identity, found)
        return found

    # ---- the table's lines -----------------------------------------------------------------------
    def candidates(self, baselines: bool = True) -> list[Candidate]:
        """Every representation that the task offers, of which the first tower's can be fine-tuned; then, if wanted,
        random weights and the samples as they are.
        """
        own = [Candidate(name, [bank], [self.task] if name == self.first else []) for name, bank in self.banks.items()]
        return own + (self.baselines() if baselines else [])

    def baselines(self) -> list[Candidate]:
        """The same networks with random weights, some times over; and the samples as they are."""
        networks = [self._random_banks(draw) for draw in range(NETWORKS)]
        towers = [name for name in self.banks if name in self.towers] or [next(iter(self.banks))]
        found = []
        for tower in towers:
            tasks = [task for task, _ in networks] if tower == self.first else []
            name = RANDOM if len(self.towers) == 1 else f"{RANDOM}, {tower}"
            found.append(Candidate(name, [banks[tower] for _, banks in networks], tasks))
        return found + [Candidate(name, [bank], []) for name, bank in self.raw.items()]


def laid_out(task: PretextTask) -> PretextTask:
    """On the best device, and there in the memory layout in which convolutions are quick; only the rounding of sums is
    another.
    """
    return task.to(best_device()).to(memory_format=torch.channels_last)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """A line that says what takes so long, where a person looks on."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(what) if console.is_terminal else contextlib.nullcontext():
        yield


def _network(card: dict, files: list[dict]) -> dict[str, Any]:
    """What decides a network's features: how it is made, and the sha256 of the files of its weights."""
    return {
        "task": card["task"],
        "towers": towers_of(card),
        "data": {key: card["data"].get(key) for key in ("size", "channels", "kinds")},
        "files": sorted(entry["sha256"] for entry in files if entry["path"].endswith((".safetensors", ".json"))),
    }


def _code(task: type) -> dict[str, str]:
    """The versions of what computes features; of a task from elsewhere, its source."""
    import timm

    found = {"zoo": __version__, "torch": torch.__version__, "timm": timm.__version__}
    for cls in task.__mro__:
        if issubclass(cls, PretextTask) and cls is not PretextTask:
            with contextlib.suppress(OSError, TypeError):  # of a class that was typed in, the name has to do
                found[cls.__qualname__] = hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()
    return found

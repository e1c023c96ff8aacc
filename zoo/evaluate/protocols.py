"""Protocols: ways to say in one number what a representation is worth.

    knn       weighted vote of the nearest labelled samples; k chosen on validation
    linear    logistic regression on standardised frozen features, to its optimum; penalty chosen on validation
    finetune  the whole network; the best state on validation

The test split is read once for each value. With fewer labels than all, a value is the mean over several draws of which
labels those are, and `sd` their standard deviation; random weights are the mean over several draws of the weights.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod

from torch import Tensor

from zoo.data.module import ZooData
from zoo.evaluate.banks import Bank, Candidate
from zoo.evaluate.finetune import FineTuning, finetune, predict
from zoo.evaluate.knn import accuracy, choose_k, knn
from zoo.evaluate.labels import choose_labelled, is_all, lacks_labels
from zoo.evaluate.linear import Probe, fit_probe
from zoo.evaluate.study import Study
from zoo.tasks.base import PretextTask

DRAWS, FINETUNE_DRAWS = 5, 3  # of the labels, where not all are used


class Protocol(ABC):
    """A way to measure a representation.

    name   as `zoo evaluate --protocols` takes it
    title  as people say it
    unit   of its values
    """

    name: str
    title: str
    unit: str = "%"

    def refusal(self, study: Study) -> str | None:
        """Why this can't be measured here, as one sentence; None if it can. Looks at the card and at what is known of
        the data without reading them.
        """
        return lacks_labels(study.info)

    def takes(self, candidate: Candidate) -> bool:
        """Whether this candidate can be measured at all."""
        return True

    @abstractmethod
    def measure(self, candidate: Candidate, data: ZooData, amount: float | int) -> list[float]:
        """The value of each run on the test split, with that amount of the training labels."""


class Frozen(Protocol):
    """A protocol on features that stay as they are."""

    def measure(self, candidate: Candidate, data: ZooData, amount: float | int) -> list[float]:
        classes, y = data.dataset.info.classes, candidate.banks[0].y["train"]
        chosen = [choose_labelled(y, amount, draw, classes) for draw in range(1 if is_all(amount) else DRAWS)]
        return [self.value(bank, rows, len(classes)) for bank in candidate.banks for rows in chosen]

    @abstractmethod
    def value(self, bank: Bank, rows: Tensor, classes: int) -> float:
        """Percent right on the test split, with the labels of the training samples `rows` (n,)."""


class Knn(Frozen):
    """The vote of the nearest labelled samples."""

    name, title = "knn", "nearest neighbours"

    def value(self, bank: Bank, rows: Tensor, classes: int) -> float:
        x, y = bank.x["train"][rows], bank.y["train"][rows]
        k, _ = choose_k(x, y, bank.x["validation"], bank.y["validation"], classes)
        return accuracy(knn(x, y, bank.x["test"], k, classes), bank.y["test"])


class Linear(Frozen):
    """The linear probe."""

    name, title = "linear", "linear probe"

    def value(self, bank: Bank, rows: Tensor, classes: int) -> float:
        return accuracy(probe_of(bank, rows, classes).predict(bank.x["test"]), bank.y["test"])


class Finetune(Protocol):
    """Fine-tuning of the whole network.

    A run takes long. There are as many as draws of the labels or networks, whichever are more.
    """

    name, title = "finetune", "fine-tuning"

    def refusal(self, study: Study) -> str | None:
        if (kind := study.towers[study.first]) != "image":
            name = study.card["name"]
            return f"the network of {name} reads {kind}, and only a network that reads images can become a classifier"
        if "image" not in study.info.fields:
            return f"{study.info.name} has no images, which the network of {study.card['name']} reads"
        return super().refusal(study)

    def takes(self, candidate: Candidate) -> bool:
        return bool(candidate.tasks)

    def measure(self, candidate: Candidate, data: ZooData, amount: float | int) -> list[float]:
        classes, y = data.dataset.info.classes, candidate.banks[0].y["train"]
        runs = range(max(1 if is_all(amount) else FINETUNE_DRAWS, len(candidate.tasks)))
        networks = itertools.cycle(zip(candidate.tasks, candidate.banks, strict=True))
        return [
            finetuned(task, bank, data, choose_labelled(y, amount, run, classes), tuning_for(task, run))
            for run, (task, bank) in zip(runs, networks, strict=False)
        ]


PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (Knn(), Linear(), Finetune())}


def frozen(protocol: str, bank: Bank, rows: Tensor, classes: int) -> float:
    """Percent right on the test split of knn or linear, with the labels of the training samples `rows` (n,)."""
    return PROTOCOLS[protocol].value(bank, rows, classes)


def probe_of(bank: Bank, rows: Tensor, classes: int) -> Probe:
    """The linear probe fitted on the training samples `rows`, its penalty chosen on validation."""
    return fit_probe(bank.x["train"][rows], bank.y["train"][rows], bank.x["validation"], bank.y["validation"], classes)


def finetuned(task: PretextTask, bank: Bank, data: ZooData, rows: Tensor, how: FineTuning) -> float:
    """Percent right on the test split of the task's backbone, fine-tuned from its probe on the training samples `rows`
    (n,).
    """
    probe = probe_of(bank, rows, len(data.dataset.info.classes))
    model = finetune(task.tower[task.first_tower], probe, data, rows, how)
    return accuracy(predict(model, data, "test"), bank.y["test"])


def tuning_for(task: PretextTask, seed: int) -> FineTuning:
    """Fine-tuning mirrors images only if the pretext task did: it knows whether they have a handedness."""
    return FineTuning(flip=0.5 if task.arguments.get("flip", 0.0) > 0 else 0.0, seed=seed)

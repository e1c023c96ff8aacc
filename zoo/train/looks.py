"""What becomes of the representation while a task is trained: callbacks that only look, and never touch the task's
loss.
"""

from __future__ import annotations

import sys
import warnings

import lightning as L

from zoo.data.module import ZooData
from zoo.evaluate.banks import extract
from zoo.evaluate.knn import accuracy, knn
from zoo.evaluate.rank import effective_rank, spread

LOOKS = 5  # in a run
NEIGHBOURS = 20
COLLAPSED = 0.01  # spread below which all images get almost the same features
FLAT = 1.2  # effective rank below which one direction has 96 % of them; random networks are above 2.5
ENOUGH = 20  # images: the effective rank of a few is low anyway


class Looks(L.Callback):
    """Has the trainer validate five times in a run, evenly, the last time after its last step. Shorter runs: after each
    step.

    For a trainer with `check_val_every_n_epoch=None` and any whole `val_check_interval`: Lightning (2.6) then validates
    after batches, counted from the run's start, that `val_check_batch` divides, and here that is always the one of the
    next look.
    """

    def on_train_start(self, trainer: L.Trainer, *ignored: object) -> None:
        self._wait(
            trainer, trainer.fit_loop.epoch_loop.batch_progress.total.ready
        )  # of a resumed run, whose look may be due

    def on_validation_end(self, trainer: L.Trainer, *ignored: object) -> None:
        self._wait(trainer, trainer.fit_loop.epoch_loop.batch_progress.total.ready + 1)

    def _wait(self, trainer: L.Trainer, first: int) -> None:
        """For the look at batch `first` or the next after it."""
        steps = int(trainer.estimated_stepping_batches)
        looks = (_batches(trainer, -(-steps * look // LOOKS)) for look in range(1, LOOKS + 1))
        trainer.val_check_batch = next((batch for batch in looks if batch >= first), sys.maxsize)


def _batches(trainer: L.Trainer, step: int) -> int:
    """Batches up to the end of a step, counted from 1: an epoch's last step is of what is left, if that is less than is
    accumulated.
    """
    batches, many = int(trainer.num_training_batches), trainer.accumulate_grad_batches
    epochs, rest = divmod(step - 1, -(-batches // many))
    return epochs * batches + min((rest + 1) * many, batches)


class OnlineKNN(L.Callback):
    """At each validation: accuracy, in percent, of a 20-nearest-neighbour vote among training images, on validation
    images. Logged as `knn`.

    Args:
        images: at most so many of each split.

    Does nothing where the data aren't a ZooData, or have no labels or no validation split.
    """

    def __init__(self, images: int = 2000):
        self.images = images

    def on_validation_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        data = _to_look_at(trainer)
        if data is None or "label" not in data.dataset.fields or not len(data.dataset.splits["validation"]):
            return
        bank = next(iter(extract(task, data, ("train", "validation"), self.images).values()))  # the first tower's
        k = min(NEIGHBOURS, len(bank.x["train"]))
        found = knn(bank.x["train"], bank.y["train"], bank.x["validation"], k, len(data.dataset.info.classes) or None)
        task.log("knn", accuracy(found, bank.y["validation"]), rank_zero_only=True)


class FeatureHealth(L.Callback):
    """At each validation: `spread` and `effective_rank` of the features of validation images; warns, once, when they
    have collapsed.

    A run that ends without a validation, or after its last one, is looked at when it ends, for the warning alone;
    without a validation split, by its training images.

    Args:
        images: at most so many.
    """

    def __init__(self, images: int = 1000):
        self.images, self.warned, self.step = images, False, -1

    def on_validation_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        data = _to_look_at(trainer)
        if data is not None and len(data.dataset.splits["validation"]):
            for name, value in self._look(trainer, task, data, "validation").items():
                task.log(name, value, rank_zero_only=True)

    def on_train_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        data = _to_look_at(trainer)
        if data is not None and self.step != trainer.global_step:
            self._look(trainer, task, data, "validation" if len(data.dataset.splits["validation"]) else "train")

    def _look(self, trainer: L.Trainer, task: L.LightningModule, data: ZooData, split: str) -> dict[str, float]:
        self.step = trainer.global_step
        x = next(iter(extract(task, data, (split,), self.images).values())).x[split]  # of the first tower
        if len(x) < 2:  # one picture has no spread, and that is no collapse
            return {}
        found = {"spread": spread(x), "effective_rank": effective_rank(x)}
        what = _collapse(found, len(x))
        if what and not self.warned and trainer.is_global_zero:
            self.warned = True
            warnings.warn(
                f"the features have collapsed at step {trainer.global_step}: {what}; "
                "a lower optim.lr or stronger views usually mend it",
                stacklevel=2,
            )
        return found


def _collapse(found: dict[str, float], images: int) -> str:
    if found["spread"] < COLLAPSED:
        return f"all images get almost the same (spread {found['spread']:.2g})"
    if found["effective_rank"] < FLAT and images >= ENOUGH:
        return f"those of all images lie along one direction (effective rank {found['effective_rank']:.3g})"
    return ""


def _to_look_at(trainer: L.Trainer) -> ZooData | None:
    """The data, if they are the zoo's; not in Lightning's check before training. Of several processes, which have the
    same weights, the first looks at all of them and the others wait; where each has but a share of the weights, all
    look.
    """
    data = trainer.datamodule
    together = getattr(trainer.strategy, "sharded", False)
    here = isinstance(data, ZooData) and (trainer.is_global_zero or together) and not trainer.sanity_checking
    return data if here else None

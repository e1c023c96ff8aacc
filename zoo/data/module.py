"""A data set as Lightning wants it: batches on demand, in an order that is a function of (seed, epoch) alone.

There is no DataLoader, on purpose. A set is a few tensors in memory or in a memory map, so a batch is one
index and workers would only copy it; and Lightning rebuilds a DataLoader's sampler under DDP, which destroys
the order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Literal

import lightning as L
import torch
from torch import Tensor

from zoo.data.columns import Fields
from zoo.data.dataset import Dataset, some_of, taken
from zoo.data.datasets import load_data
from zoo.data.order import Batches
from zoo.errors import ZooError, nearest

BATCH_SIZE = 256  # where nobody gives one


class ZooData(L.LightningDataModule):
    """A `Dataset` for `trainer.fit(task, data)`; and, for everything else, `batches`.

    Args:
        dataset: fields and splits; `data.dataset` gives it back.
        batch_size: samples per process and step, at least 1; by default 256, or the number of samples in the train
            split if that is smaller.
        seed: the order of an epoch is a function of the seed and the epoch.

    A batch is a dict of stacked fields (text: a list of B strings) and `index`. On a CUDA device, images stay
    on the device while fitting, if they take no more than a third of its free memory.
    """

    def __init__(self, dataset: Dataset, batch_size: int | None = None, seed: int = 0):
        super().__init__()
        self.may_shrink = batch_size is None
        batch_size = BATCH_SIZE if batch_size is None else batch_size
        check_batch_size(batch_size)
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.validation_samples: int | None = None
        self._resident: tuple[torch.device, Tensor] | None = None

    def for_run(self, seed: int, validation_samples: int | None = None, may_shrink: bool = False) -> ZooData:
        """This module, set up for a run.

        Args:
            seed: the run's.
            validation_samples: samples of the validation split that a look during training sees; None for all.
            may_shrink: whether a batch size that was given may be lowered too, to the size of the train split.
        """
        self.seed, self.validation_samples = seed, validation_samples
        self.may_shrink |= may_shrink
        return self

    def ensure_full_step(self, world: int = 1, say: bool = True) -> None:
        """Make sure that the train split fills one step of `world` processes.

        Where `may_shrink` allows it, the batch size is lowered, and `say` prints a sentence about that. Raises ZooError
        when the split is too small otherwise.
        """
        count, name = len(self.dataset.splits["train"]), self.dataset.info.name
        most, spread = count // world, f" on each of {world} processes" if world > 1 else ""
        if self.batch_size <= most:
            return
        if most == 0:
            raise ZooError(
                f"the train split of {name} has {count:,} images, and each of {world} processes needs one at least; "
                "add images, or start fewer processes"
            )
        if not self.may_shrink:
            raise ZooError(
                f"the train split of {name} has {count:,} images and one step needs {self.batch_size:,}{spread}; "
                f"give data.batch_size {most} or less"
            )
        if say:
            print(
                f"the train split of {name} has {count:,} images, so a step takes {most:,}{spread} instead of "
                f"{self.batch_size:,} (data.batch_size)",
                file=sys.stderr,
                flush=True,
            )
        self.batch_size = most

    def train_dataloader(self) -> Batches:
        self.ensure_full_step(self.trainer.world_size, self.trainer.is_global_zero)
        return Batches(
            self._fields(), self.dataset.splits["train"], self.batch_size, self.trainer, self.seed, training=True
        )

    def val_dataloader(self) -> Batches:
        return Batches(
            self._fields(),
            some_of(self.dataset.splits["validation"], self.validation_samples),
            self.batch_size,
            self.trainer,
        )

    def teardown(self, stage: str) -> None:
        self._resident = None  # gives the device memory back

    def batches(self, split: str, batch_size: int | None = None, fields: Sequence[str] | None = None) -> Iterator[dict]:
        """One plain pass over `split` in the set's order, without a trainer; the last batch is short.

        Args:
            split: train, validation or test.
            batch_size: by default the module's own.
            fields: those that a batch shall hold beside `index`; by default all.

        Raises ZooError for an unknown split or field, at the call.
        """
        size = self.batch_size if batch_size is None else batch_size
        check_batch_size(size)
        known, splits = self.dataset.fields, self.dataset.splits
        for name, where in ((split, splits), *((field, known) for field in fields or ())):
            if name not in where:
                kind = "split" if where is splits else "field"
                raise ZooError(f"{self.dataset.info.name} has no {kind} {name!r}{nearest(name, where)}")
        wanted = known if fields is None else {field: known[field] for field in fields}
        return taken(wanted, (rows for rows in splits[split].split(size) if len(rows)))

    def _fields(self) -> Fields:
        """The fields, `image` on the trainer's device if that is a GPU with room for it."""
        fields, device = self.dataset.fields, self.trainer.strategy.root_device
        image = fields.get("image")
        if device.type != "cuda" or not isinstance(image, Tensor):
            return fields
        if self._resident is None or self._resident[0] != device:
            free, _ = torch.cuda.mem_get_info(device)
            if image.nbytes > free / 3:
                return fields
            self._resident = (device, image.to(device))
        return fields | {"image": self._resident[1]}


def check_batch_size(size: int) -> None:
    """Raises ZooError unless `size` is a whole number of samples, at least 1."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ZooError(f"data.batch_size is {size!r}; it is a whole number of images, at least 1")


def create_data(
    name: str,
    batch_size: int | None = None,
    size: int | list[int] | None = None,
    length: int | None = None,
    seconds: float | None = None,
    rate: int | None = None,
    lines: bool = False,
    bad_samples: Literal["raise", "skip", "replace"] = "raise",
    bad_share: float = 0.001,
) -> ZooData:
    """The data module of a named set, of `folder:PATH` or of `shards:PATH`. Its arguments are the recipe's `data`
    group.

    Args:
        name: see `zoo data list`.
        batch_size: samples per process and step; by default 256, or the number of samples in the train split if that is
            smaller. In a run on a folder or shards, a batch size from the recipe (not from the command line) is lowered
            likewise.
        size: side of square images in pixels, or [height, width]; by default the set's own. For a folder or shards the
            default is 64 or, in a run, the multiple of the backbone's patches nearest to 64 that the task accepts.
        length: tokens that a text backbone reads of each text; by default the set's own, 64 for a folder or shards.
        seconds: length of the sounds of a folder or shards. Longer ones are cut at their end, and shorter ones padded
            with silence. By default their median length.
        rate: samples a second to which the sounds of a folder or shards are resampled; by default the files' own rate,
            which must be the same for all.
        lines: whether each line of the .txt files of a folder is a sample, instead of each file.
        bad_samples: what to do about images of a folder or of shards that can't be read: name them and end, leave them
            out (not of shards), or put the next of the same class there.
        bad_share: share of the images that may be left out or replaced.
    """
    if batch_size is not None:
        check_batch_size(batch_size)
    more = {"length": length, "seconds": seconds, "rate": rate, "lines": lines}
    return ZooData(load_data(name, size, bad_samples=bad_samples, bad_share=bad_share, **more), batch_size)

"""The order of a run: which rows each batch of each process holds, as a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import torch
from torch import Tensor

from zoo.data.columns import Fields, is_near
from zoo.data.dataset import taken
from zoo.draws import mix


def batches_done(trainer: L.Trainer) -> int:
    """Training batches done since the run began: the count that Lightning (2.6) always restores exactly."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.completed


class Batches:
    """One pass over a split. Checkpoints hold nothing of it: the trainer's own counters say where to start.

    In training the order is drawn from (seed, epoch), and a global batch that would stay incomplete is left
    out. Elsewhere the order is that of `rows`, and the last batch is short. With W processes, process r takes
    rows r, r + W, ... of each global batch of W `batch_size` rows, and all take equally many, since losses
    gather over ranks: so outside training up to W - 1 rows are left out at the end. Of shards, in training,
    each process takes a stretch of its own (`zoo.data.order.in_windows`).
    """

    def __init__(
        self, fields: Fields, rows: Tensor, batch_size: int, trainer: L.Trainer, seed: int = 0, training: bool = False
    ):
        self.fields, self.rows, self.batch_size, self.trainer = fields, rows, batch_size, trainer
        self.seed, self.training = seed, training

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.trainer.world_size

    def __len__(self) -> int:
        full, rest = divmod(len(self.rows), self.global_batch)
        return full if self.training else full + (rest >= self.trainer.world_size)

    def __iter__(self) -> Iterator[dict]:
        # A generator: the counters are read at the first next(), and by then Lightning has restored them.
        yield from taken(self.fields, self._parts())

    def _parts(self) -> Iterator[Tensor]:
        """This process's rows of each batch."""
        rank, world, size = self.trainer.global_rank, self.trainer.world_size, self.global_batch
        start, epoch = self._place() if self.training else (0, 0)
        order = self.rows
        if self.training and not all(map(is_near, self.fields.values())):
            yield from in_windows(self.rows, (self.seed, epoch), self.batch_size, rank, world, start)
            return
        if self.training:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            order = self.rows[torch.randperm(len(self.rows), generator=generator)]
        for number in range(start, len(self)):
            rows = order[number * size : (number + 1) * size]
            yield rows[: len(rows) // world * world][rank::world]

    def _place(self) -> tuple[int, int]:
        """The batch of the epoch to start with, and the epoch.

        The epoch is counted in batches: Lightning's own count of epochs (2.6) is one too high after resuming,
        under max_steps, from a state saved at the end of an epoch or of a run. `overfit_batches` wants the
        same each time.
        """
        start = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        epoch = -(-(batches_done(self.trainer) - start) // self.trainer.num_training_batches)
        return start, 0 if self.trainer.overfit_batches else epoch

    # Both tell Lightning that resuming within an epoch is fine; there is nothing to keep.
    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        return


BLOCK = 256  # neighbouring rows that stay together in the order of an epoch


WINDOW = 8192  # rows of a process that are mixed with each other


def in_windows(
    rows: Tensor, seeds: tuple[int, ...], batch_size: int, rank: int, world: int, start: int = 0
) -> Iterator[Tensor]:
    """Rows (B,) of each batch of process `rank` of `world` in one epoch, from batch number `start` on; a function of
    its arguments alone.

    Args:
        rows: (n,) the split. Every process takes n // (world B) batches; no row is taken twice, and less than world B
            are left out.
        seeds: what the order is drawn from.

    Memory: one window, and eight bytes for each block of the split.
    """
    length = len(rows) // (world * batch_size) * batch_size  # of each process
    order = torch.randperm(-(-len(rows) // BLOCK), generator=torch.Generator().manual_seed(mix(*seeds)))
    ends = torch.full((len(order),), BLOCK)
    ends[order == len(order) - 1] = len(rows) - BLOCK * (len(order) - 1)  # the last block may be short
    ends = ends.cumsum(0)
    size = max(1, WINDOW // batch_size) * batch_size  # whole batches
    for window in range(start * batch_size // size, -(-length // size)):
        place = torch.arange(window * size, min(length, (window + 1) * size)) + rank * length
        block = torch.searchsorted(ends, place, right=True)
        within = place - torch.where(block > 0, ends[block - 1], 0)
        mixed = torch.randperm(len(place), generator=torch.Generator().manual_seed(mix(*seeds, rank, window)))
        chosen = rows[(order[block] * BLOCK + within)[mixed]]
        rest = chosen[max(0, start * batch_size - window * size) :]
        yield from rest.split(batch_size) if len(rest) else ()

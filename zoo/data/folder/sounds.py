"""Sounds of a folder: their rate and length from the headers, and their samples from a cache."""

from __future__ import annotations

import statistics
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.data.columns import Column
from zoo.data.folder.cache import File, Form, decoded, shown, with_progress
from zoo.data.info import LONGEST_SECONDS, Settings
from zoo.data.media import sound
from zoo.errors import ZooError
from zoo.fields import Audio

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Sounds(Column):
    """Looks like a float32 tensor (n, samples) of values in [-1, 1) that can only be indexed by rows.

    values   int16 (n, samples), in memory or mapped
    instead  row -> the row whose sound is given in its place
    """

    def __init__(self, values: np.ndarray, instead: dict[int, int] | None = None):
        self.values, self.instead = values, instead or {}

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def take(self, rows: Tensor) -> Tensor:
        import torch

        rows = rows.cpu()
        if self.instead:
            rows = torch.tensor([self.instead.get(row, row) for row in rows.tolist()], dtype=torch.int64)
        return torch.from_numpy(self.values[rows.numpy()]).float() / sound.FULL

    def __getitem__(self, rows: Tensor | slice | int) -> Tensor:
        import torch

        if isinstance(rows, int):
            return self.take(torch.tensor([rows]))[0]
        return self.take(torch.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows)


def audio_of(root: Path, files: list[File], settings: Settings) -> Audio:
    """Rate and length of a folder's sounds: those that the settings ask for, else the files' one rate and their median
    length.

    Raises ZooError where the files have several rates and the settings name none; where a header can't be read and the
    settings don't leave such files out; and where no header can be read.
    """
    found = _headers(root, tuple(files))
    good = [(file, one) for file, one in zip(files, found, strict=True) if isinstance(one, sound.Header)]
    bad = [one for one in found if not isinstance(one, sound.Header)]
    if bad and (settings.bad_samples == "raise" or not good):
        more = f" ({len(bad):,} sounds can't be read)" if len(bad) > 1 else ""
        raise ZooError(f"{bad[0]}{more}")
    return common_audio([(file.path, one.rate, one.samples) for file, one in good], settings, shown(root))


def common_audio(sounds: list[tuple[str, int, int]], settings: Settings, where: str) -> Audio:
    """Rate and length of sounds: (name, rate, samples) of each. Raises ZooError as `audio_of` does."""
    rate, (first, first_rate, _) = settings.rate, sounds[0]
    if rate is None:
        other = next(((name, other) for name, other, _ in sounds if other != first_rate), None)
        if other is not None:
            raise ZooError(
                f"the sounds of {where} have different rates ({shown(first)} {first_rate:,} and {shown(other[0])} "
                f"{other[1]:,} samples a second); set data.rate to resample all of them"
            )
        rate = first_rate
    seconds = settings.seconds
    if seconds is None:
        seconds = min(statistics.median(samples / own for _, own, samples in sounds), LONGEST_SECONDS)
    return Audio(rate, round(float(seconds), 6))


def sound_form(audio: Audio) -> Form:
    """Rows that are sounds: int16 (samples,)."""
    name = f"{audio.rate} {audio.samples}"
    return Form("sound", "sounds", name, (audio.samples,), "<i2", partial(sound.decode, audio=audio))


@lru_cache(maxsize=4)  # a run asks for the entry first and for the sounds later
def _headers(root: Path, files: tuple[File, ...]) -> list:
    results = decoded((root / file.path for file in files), sound.header, "sound")
    return list(with_progress(results, len(files), f"reading the headers of the sounds of {root}"))

"""Audio backbones: log-mel images of sound, read by a timm model with one channel.

Letters: B batch, S samples of sound, M mel bands, N columns of the image, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.architectures import AUDIO_ARGUMENTS, Plain
from zoo.backbones.image import ImageBackbone
from zoo.backbones.log_mel import LogMel
from zoo.backbones.plain import check_plain
from zoo.backbones.timm_model import checked_size, patches_of, timm_model
from zoo.errors import ZooError

LIMITS = {  # least and most
    "rate": (1000, 768_000),
    "seconds": (1e-3, 3600),
    "mels": (1, 1024),
    "window": (1e-4, 10),
    "hop": (1e-4, 10),
    "fmin": (0, 384_000),
    "fmax": (0, 384_000),
    "decibels": (1, 400),
}
MOST_SAMPLES, MOST_COLUMNS, MOST_WINDOW = 1 << 24, 1 << 14, 1 << 14  # of a sound; of its image; samples of a window


class AudioBackbone(ImageBackbone):
    """A timm model with one channel that reads sounds, by their log-mel images (B, 1, M, N).

    `prepare` makes the images; every other method reads them as an `ImageBackbone` does, so `tokens`, `map` and the
    rest work alike. `size` is (M, N), or M where both are equal. A row is a band, the highest on top.
    """

    reads = "audio"

    def __init__(self, model: nn.Module, size: Any, timm_arguments: dict, front: LogMel, given: dict[str, Any]):
        super().__init__(model, given["model"], size, timm_arguments)
        self.name, self.front = "audio", front
        self.rate, self.seconds = int(given["rate"]), float(given["seconds"])
        self.samples = max(1, round(self.rate * self.seconds))
        self.arguments = {key: value for key, value in given.items() if key not in ("rate", "seconds")}

    def prepare(self, values: Tensor) -> Tensor:
        """Sounds (B, S), float in [-1, 1] -> log-mel images (B, 1, M, N) on the backbone's device. Raises ZooError for
        another number of samples, as of another rate.
        """
        if not values.is_floating_point() or values.ndim != 2:
            raise ZooError(
                f"sounds of one channel are floats (B, S), and these are {values.dtype} of shape {tuple(values.shape)}"
            )
        if values.shape[1] != self.samples:
            raise ZooError(
                f"the sounds have {values.shape[1]:,} samples, and {self.described} reads {self.samples:,}: "
                f"{self.seconds:g} s at {self.rate:,} a second; set data.rate and data.seconds to those"
            )
        return self.front(values.to(self.shift.device))

    def require_rate(self, rate: int, who: str) -> None:
        """Raises ZooError, naming `who` has that rate, unless it is the backbone's own."""
        if rate != self.rate:
            raise ZooError(
                f"{who} has {rate:,} samples a second, and {self.described} was made for {self.rate:,}; set data.rate "
                f"to {self.rate}"
            )

    @property
    def described(self) -> str:
        return f"the audio backbone of {self.timm_name}"

    def example(self, count: int) -> Tensor:
        """Silence (B, S)."""
        return torch.zeros(count, self.samples)

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, **self.arguments, "rate": self.rate, "seconds": self.seconds}


def audio_backbone(**arguments: Any) -> AudioBackbone:
    """A timm model with fresh weights behind a log-mel front end.

    `AUDIO_ARGUMENTS` has the front end's keywords with their defaults: `model` of timm, `rate`, `seconds`, `mels`,
    `window` and `hop` in seconds, `fmin` and `fmax` in Hz, `decibels`. Every further keyword is timm's own.

    Raises ZooError for values out of range, bands that a window can't tell apart, images that the model's patches don't
    divide, and what timm can't build.
    """
    ours = {key: arguments.get(key, default) for key, default in AUDIO_ARGUMENTS.items()}
    for word, value in ours.items():
        check_plain(word, value, AUDIO_ARGUMENTS[word], *LIMITS.get(word, (0, 0)))
    for word in ("in_chans", "img_size"):
        if word in arguments:
            raise ZooError(f"backbone.{word} can't be set: log-mel images have one channel and the size of the sounds")
    front, columns = _front(ours)
    timm_arguments = {key: value for key, value in arguments.items() if key not in ours} | {"in_chans": 1}
    size = (ours["mels"], columns)
    model = timm_model(ours["model"], size, timm_arguments)
    _check_patches(model, ours, size)
    given = arguments | {key: ours[key] for key in ("model", "rate", "seconds")}
    return AudioBackbone(model, checked_size(ours["model"], model, size), timm_arguments, front, given)


def _front(ours: dict[str, Plain]) -> tuple[LogMel, int]:
    """The front end, and the columns of its images. Raises ZooError for times and frequencies that don't fit."""
    rate = ours["rate"]
    samples, window, hop = (max(1, round(rate * ours[word])) for word in ("seconds", "window", "hop"))
    if samples > MOST_SAMPLES or window > MOST_WINDOW:
        word, most = ("seconds", MOST_SAMPLES) if samples > MOST_SAMPLES else ("window", MOST_WINDOW)
        raise ZooError(
            f"backbone.{word} is {ours[word]} s at {rate:,} samples a second; it has to be at most {most / rate:g} s"
        )
    columns = samples // hop
    if not 1 <= columns <= MOST_COLUMNS:
        raise ZooError(
            f"a sound of {ours['seconds']:g} s has {columns:,} columns of {ours['hop']:g} s (backbone.hop); it has to "
            f"have from 1 to {MOST_COLUMNS:,}"
        )
    if window < 2:
        raise ZooError(f"backbone.window is {ours['window']:g} s, less than two samples at {rate:,} a second")
    highest = ours["fmax"] or rate / 2
    if not ours["fmin"] < highest <= rate / 2:
        raise ZooError(
            f"backbone.fmin is {ours['fmin']:g} and backbone.fmax {highest:g} Hz; at {rate:,} samples a second bands "
            f"lie between 0 and {rate / 2:g}, in ascending order"
        )
    return LogMel(rate, ours["mels"], window, hop, ours["fmin"], highest, ours["decibels"]), columns


def _check_patches(model: nn.Module, ours: dict[str, Plain], size: tuple[int, int]) -> None:
    """Raises ZooError for patches that don't divide the images, in words of sound."""
    patch = patches_of(model)
    if patch is None or not any(side % part for side, part in zip(size, patch, strict=True)):
        return
    rows, columns = (max(part, side // part * part) for side, part in zip(size, patch, strict=True))
    hop = round(ours["rate"] * ours["seconds"]) // columns / ours["rate"]
    raise ZooError(
        f"{ours['model']} has patches of {patch[0]} x {patch[1]}, which don't divide images of {size[0]} bands x "
        f"{size[1]} columns; set backbone.mels to {rows} and backbone.hop to {hop:g}, or another "
        "backbone.patch_size"
    )

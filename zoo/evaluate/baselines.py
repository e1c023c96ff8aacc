"""What a representation has to beat: the same network with random weights, and the samples as they are.

Samples as they are, by the kind of a field: the pixels of images, the words of texts, and the spectrum of sounds.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from zoo.backbones import create_backbone
from zoo.card import given_by_data, towers_of
from zoo.data.module import ZooData
from zoo.draws import Draw, counted
from zoo.evaluate.banks import Bank, batches
from zoo.evaluate.labels import SPLITS, labels_of
from zoo.fields import height_width
from zoo.tasks.base import PretextTask
from zoo.tasks.create import create_task
from zoo.views import resize

RANDOM, PIXELS, WORDS, SPECTRUM = "random weights", "pixels", "bag of words", "log-mel"
RAW = (PIXELS, WORDS, SPECTRUM)
NETWORKS = 3  # draws of random weights
PIXEL_SIDE = 32  # larger images are averaged down to so many pixels a side
MOST_WORDS = 4096
MOST_VALUES = 1 << 27  # numbers in a bag of words: a large set gets fewer words, so that memory stays at 512 MB
BANDS, WINDOW = 64, 0.025  # of the log-mel spectrum: bands, and seconds of a window; windows overlap by half


def random_task(card: dict, draw: int, trained: PretextTask | None = None) -> PretextTask:
    """The card's task and towers with fresh weights, another set of them for each `draw`, in eval mode.

    A BatchNorm has seen no sample. What the towers of `trained`, if given, learned beside their weights is the same
    here, such as a tokenizer.
    """
    task = dict(card["task"])
    towers = {
        name: dict(entry["backbone"]) | given_by_data(card, entry["reads"]) for name, entry in towers_of(card).items()
    }
    with counted(torch.device("cpu"), draw, Draw.RANDOM_WEIGHTS):
        made = {name: create_backbone(keywords.pop("name"), **keywords) for name, keywords in towers.items()}
        for name, backbone in made.items() if trained is not None else ():
            backbone.take_learned(trained.tower[name])
        return create_task(task.pop("name"), towers=made, **task).eval()


def is_baseline(features: str) -> bool:
    """Whether a row's features are something that a representation has to beat."""
    return features in RAW or features.startswith(RANDOM)


def raw_rows(data: ZooData, field: str = "image", splits: tuple[str, ...] = SPLITS) -> tuple[str, Bank] | None:
    """The name and the bank of a field's samples as they are; None for a kind without such rows."""
    kind = data.dataset.info.kinds[field].kind
    makers = {"image": (PIXELS, _pixels), "text": (WORDS, _words), "audio": (SPECTRUM, _spectrum)}
    if kind not in makers:
        return None
    name, maker = makers[kind]
    return name, Bank(maker(data, field, splits), labels_of(data, splits))


def raw_pixels(data: ZooData, splits: tuple[str, ...] = SPLITS) -> Bank:
    """The images themselves, flattened, in [0, 1]; those with a side above 32 pixels are averaged down to that."""
    return Bank(_pixels(data, "image", splits), labels_of(data, splits))


def _pixels(data: ZooData, field: str, splits: tuple[str, ...]) -> dict[str, Tensor]:
    sides = height_width(data.dataset.info.size)
    scale = min(1.0, PIXEL_SIDE / max(sides))
    size = tuple(max(1, round(side * scale)) for side in sides)
    return {
        split: torch.cat([resize(batch[field], size).flatten(1) for batch in batches(data, split, (field,))])
        for split in splits
    }


def _words(data: ZooData, field: str, splits: tuple[str, ...]) -> dict[str, Tensor]:
    """Tf-idf of the most frequent words of the train split, each text of length 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = {split: [text for batch in batches(data, split, (field,)) for text in batch[field]] for split in splits}
    known = texts.get("train") or [text for batch in batches(data, "train", (field,)) for text in batch[field]]
    count = max(256, min(MOST_WORDS, MOST_VALUES // max(1, sum(map(len, texts.values())))))
    bag = TfidfVectorizer(max_features=count, token_pattern=r"(?u)\w+", dtype=np.float32)
    try:
        bag.fit(known)
    except ValueError:  # no text of the train split has a word
        return {split: torch.zeros(len(rows), 1) for split, rows in texts.items()}
    return {split: torch.from_numpy(bag.transform(rows).toarray()).float() for split, rows in texts.items()}


def _spectrum(data: ZooData, field: str, splits: tuple[str, ...]) -> dict[str, Tensor]:
    """Mean and standard deviation over time of each band of the log-mel spectrum: (n, 2 x bands)."""
    rate = data.dataset.info.kinds[field].rate
    return {
        split: torch.cat([_log_mel_moments(batch[field], rate) for batch in batches(data, split, (field,))])
        for split in splits
    }


def _log_mel_moments(sound: Tensor, rate: int) -> Tensor:
    size = 1 << max(5, math.ceil(math.log2(WINDOW * rate)))
    sound = torch.nn.functional.pad(sound.float(), (0, max(0, size - sound.shape[1])))
    power = torch.stft(sound, size, size // 2, window=torch.hann_window(size), center=False, return_complex=True)
    mel = torch.log(_mel_filters(rate, size) @ power.abs().square() + 1e-6)  # (B, bands, windows)
    return torch.cat([mel.mean(2), mel.std(2, correction=0)], 1)


def _mel_filters(rate: int, size: int) -> Tensor:
    """Triangles (bands, size / 2 + 1) evenly spaced in mel = 2595 log10(1 + hertz / 700)."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, BANDS + 2) / 2595) - 1)
    hertz = torch.linspace(0, rate / 2, size // 2 + 1)
    rising = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)

"""Raw files -> arrays, one function per set. Readers of torchvision's sets use torchvision's own classes.

Each takes (raw folder, size, an empty folder of its own) and returns (fields, splits): fields are uint8
images (n, C, H, W), int64 arrays (n,) or lists of str; splits are int64 indices. Only where files are decoded
one by one does a reader honour `size`; elsewhere datasets.py resizes. Large images go to a memory map in the
folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from zoo.data.media.resize import resize
from zoo.errors import ZooError
from zoo.fields import ImageSize, height_width

Read = tuple[dict, dict[str, np.ndarray]]


def read_fashion_mnist(raw: Path, size: ImageSize, folder: Path) -> Read:
    """Validation: the last sixth of the original training pictures, 10,000 of 60,000."""
    images = [_read_idx(raw / f"{part}-images-idx3-ubyte") for part in ("train", "t10k")]
    labels = [_read_idx(raw / f"{part}-labels-idx1-ubyte") for part in ("train", "t10k")]
    known, test = (len(part) for part in labels)
    fields = {"image": np.concatenate(images)[:, None], "label": np.concatenate(labels).astype(np.int64)}
    return fields, in_order(train=known - known // 6, validation=known // 6, test=test)


def _read_idx(path: Path) -> np.ndarray:
    """The idx format: 0, 0, 8 for uint8, the number of dimensions, each as big-endian int32, the bytes."""
    data = path.read_bytes()
    if data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise ZooError(f"{path} isn't an idx file of bytes")
    shape = np.frombuffer(data, ">i4", data[3], 4)
    if len(data) != 4 + 4 * len(shape) + int(np.prod(shape.astype(np.int64))):
        raise ZooError(f"{path} has {len(data):,} bytes, which isn't what its header says")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


DIGITS = "65e5b4619795efb40c1082f4c350c049e4ad552200d369b6ae99e21eef5e72c5"  # of the levels and labels


def read_digits(raw: Path | None, size: ImageSize, folder: Path | None) -> Read:
    """Per class the first 70 % train, the next 15 % validate, the rest test: later ones show other hands."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ZooError(
            "the set digits comes with scikit-learn, which isn't installed; `pip install scikit-learn`"
        ) from error
    found = load_digits()
    levels, labels = found.images.astype(np.uint8), found.target.astype(np.int64)  # levels 0..16
    digest = hashlib.sha256(levels.tobytes() + labels.tobytes()).hexdigest()
    if digest != DIGITS:
        raise ZooError(
            f"scikit-learn's digits aren't those of version 1 (sha256 {digest[:12]}, not {DIGITS[:12]}); "
            "install another scikit-learn"
        )
    images = (levels.astype(np.uint16) * 255 + 8) // 16
    parts: dict[str, list] = {"train": [], "validation": [], "test": []}
    for digit in range(10):
        of_class = np.flatnonzero(labels == digit)
        ends = round(0.7 * len(of_class)), round(0.85 * len(of_class))
        for name, part in zip(parts, np.split(of_class, ends), strict=True):
            parts[name].append(part)
    return (
        {"image": images.astype(np.uint8)[:, None], "label": labels},
        {name: np.sort(np.concatenate(part)) for name, part in parts.items()},
    )


def read_cifar10(raw: Path, size: ImageSize, folder: Path) -> Read:
    return _read_cifar("CIFAR10", raw)


def read_cifar100(raw: Path, size: ImageSize, folder: Path) -> Read:
    return _read_cifar("CIFAR100", raw)


def _read_cifar(kind: str, raw: Path) -> Read:
    """Validation: the last tenth of the original training pictures (5,000 of 50,000, whose order is random).

    The files are pickles; torchvision unpickles them only after comparing their md5, and none comes here without its
    sha256.
    """
    import torchvision.datasets

    train, test = (getattr(torchvision.datasets, kind)(raw, train=train) for train in (True, False))
    images = np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2)
    labels = np.array([*train.targets, *test.targets], np.int64)
    kept = len(train.data) - len(train.data) // 10
    return (
        {"image": np.ascontiguousarray(images), "label": labels},
        in_order(train=kept, validation=len(train.data) - kept, test=len(test.data)),
    )


def read_stl10(raw: Path, size: ImageSize, folder: Path) -> Read:
    """Validation: the last tenth of each class among the original labelled training pictures."""
    import torchvision.datasets

    train, test = (torchvision.datasets.STL10(raw, split=split) for split in ("train", "test"))
    labels = np.concatenate([train.labels, test.labels]).astype(np.int64)
    splits = _hold_out(train.labels)
    splits["test"] = np.arange(len(train.labels), len(labels))
    return {"image": np.concatenate([train.data, test.data]), "label": labels}, splits


def read_stl10_unlabeled(raw: Path, size: ImageSize, folder: Path) -> Read:
    """stl10 with the unlabelled pictures added to train; without labels, so none is used by accident."""
    import torchvision.datasets

    fields, splits = read_stl10(raw, size, folder)
    more = torchvision.datasets.STL10(raw, split="unlabeled").data
    known = len(fields["image"])
    image = _map(folder, known + len(more), 3, more.shape[-1])
    image[:known] = fields["image"]
    for begin in range(0, len(more), 1000):  # the reader's transpose is a view: 2.8 GB once, not twice
        image[known + begin : known + begin + 1000] = more[begin : begin + 1000]
    splits["train"] = np.concatenate([splits["train"], np.arange(known, known + len(more))])
    return {"image": image}, splits


def read_imagenette(raw: Path, size: ImageSize, folder: Path) -> Read:
    """Test: the original validation pictures; validation: the last tenth of each class's training pictures,
    by name, at most 100. Decoded straight to `size`: short side, antialiased, centre crop.
    """
    import torch
    import torchvision.datasets

    parts = [torchvision.datasets.Imagenette(raw, split=split, size="160px") for split in ("train", "val")]
    labels = [np.array([label for _, label in part._samples], np.int64) for part in parts]
    image, row = _map(folder, sum(len(part) for part in parts), 3, size), 0
    for part in parts:
        for number in range(len(part)):
            try:
                picture = np.array(part[number][0])
            except OSError as error:
                raise ZooError(
                    f"{part._samples[number][0]} can't be decoded ({error}); get imagenette again"
                ) from error
            image[row] = resize(torch.from_numpy(picture).permute(2, 0, 1)[None], size)[0].numpy()
            row += 1
    splits = _hold_out(labels[0], most=100)
    splits["test"] = np.arange(len(labels[0]), row)
    return {"image": image, "label": np.concatenate(labels)}, splits


def in_order(**counts: int) -> dict[str, np.ndarray]:
    """Consecutive splits of the given lengths."""
    ends = np.cumsum([0, *counts.values()])
    return {name: np.arange(begin, end) for name, begin, end in zip(counts, ends[:-1], ends[1:], strict=True)}


def _hold_out(labels: np.ndarray, most: int | None = None) -> dict[str, np.ndarray]:
    held = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        count = max(1, len(of_class) // 10)
        if most is not None:
            count = min(count, most)
        held.append(of_class[len(of_class) - count :])
    validation = np.sort(np.concatenate(held))
    return {"train": np.setdiff1d(np.arange(len(labels)), validation), "validation": validation}


def _map(folder: Path, count: int, channels: int, size: ImageSize) -> np.ndarray:
    shape = (count, channels, *height_width(size))
    return np.lib.format.open_memmap(folder / "image.npy", "w+", np.uint8, shape)

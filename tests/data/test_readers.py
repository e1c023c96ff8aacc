"""Readers against tiny files in the true on-disk formats."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from zoo.data.datasets import get_data, load_data
from zoo.data.named import catalogue, readers
from zoo.data.sources import sources
from zoo.errors import ZooError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)
    return tmp_path / "home"


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def expect(monkeypatch, name: str, **splits: int) -> None:
    """Let a named set have as many samples as the fake holds."""
    entry = catalogue.ENTRIES[name]
    monkeypatch.setitem(catalogue.ENTRIES, name, replace(entry, info=replace(entry.info, splits=splits)))


def pin(monkeypatch, name: str, given: Path, **changed) -> None:
    """Let what lies below the folder be what is known of a set: its files, or, where one is, its archive, which is
    packed.
    """
    known = replace(sources.SOURCES[name], **changed)
    if known.archive is None:
        known = replace(known, digest=sources.digest_of(sources.hash_files(given)))
    else:
        archive = given / known.archive[0]
        packed = [path for path in given.iterdir() if path.is_dir()]
        with tarfile.open(archive, "w:gz") as tar:
            for path in packed:
                tar.add(path, path.name)
        known = replace(known, archive=(archive.name, hashlib.sha256(archive.read_bytes()).hexdigest()))
    monkeypatch.setitem(sources.SOURCES, name, known)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(header + array.tobytes())


def test_idx_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    write_idx(tmp_path / "x", images)
    assert np.array_equal(readers._read_idx(tmp_path / "x"), images)
    for spoilt in (b"", b"\0\0\x09\x01\0\0\0\1x", b"\0\0\x08\x03\0\0", (tmp_path / "x").read_bytes()[:-1]):
        (tmp_path / "y").write_bytes(spoilt)
        with pytest.raises(ZooError, match=str(tmp_path / "y")):
            readers._read_idx(tmp_path / "y")


CIFAR = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py", "labels"),
    "cifar100": ("CIFAR100", "cifar-100-python", "fine_labels"),
}


@pytest.mark.parametrize("name", CIFAR)
def test_cifar(tmp_path, monkeypatch, name):
    kind, base, key = CIFAR[name]
    known, given = getattr(torchvision.datasets, kind), tmp_path / "given" / base
    given.mkdir(parents=True)
    numbers = iter(range(100))

    def write(file: str, count: int) -> list[str]:
        rows = [next(numbers) for _ in range(count)]
        data = np.repeat(np.array(rows, np.uint8)[:, None], 3072, 1)
        data[:, 1024:2048] += 100  # green, so that the order of the channels shows
        (given / file).write_bytes(pickle.dumps({"data": data, key: [row % 10 for row in rows]}))
        return [file, md5(given / file)]

    # 5 x 4 or 20 training pictures, 3 for testing
    names = [file for file, _ in known.train_list]
    monkeypatch.setattr(known, "train_list", [write(file, 20 // len(names)) for file in names])
    monkeypatch.setattr(known, "test_list", [write(known.test_list[0][0], 3)])
    classes = list(catalogue.ENTRIES[name].info.classes)
    (given / known.meta["filename"]).write_bytes(pickle.dumps({known.meta["key"]: classes}))
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": md5(given / known.meta["filename"])})
    expect(monkeypatch, name, train=18, validation=2, test=3)
    pin(monkeypatch, name, tmp_path / "given")

    assert get_data(name, tmp_path / "given").name == "raw"
    data = load_data(name, download=False)
    assert data.fields["image"].shape == (23, 3, 32, 32) and data.fields["image"].dtype == torch.uint8
    assert data.fields["image"][:, 0, 5, 7].tolist() == list(range(23))
    assert data.fields["image"][:, 1, 5, 7].tolist() == list(range(100, 123))
    assert data.fields["label"].tolist() == [row % 10 for row in range(23)]
    assert [index.tolist() for index in data.splits.values()] == [list(range(18)), [18, 19], [20, 21, 22]]


def write_stl10(folder: Path, monkeypatch) -> np.ndarray:
    """20 labelled, 6 test and 4 unlabelled pictures; returns all, in that order, as (n, 3, 96, 96)."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 96, 96), np.uint8)
    parts = {"train_X": images[:20], "test_X": images[20:26], "unlabeled_X": images[26:]}
    for name, part in parts.items():  # the format goes column by column
        (folder / f"{name}.bin").write_bytes(np.ascontiguousarray(part.transpose(0, 1, 3, 2)).tobytes())
    (folder / "train_y.bin").write_bytes(bytes(row % 2 + 1 for row in range(20)))
    (folder / "test_y.bin").write_bytes(bytes([10, 9, 8, 7, 6, 5]))
    (folder / "class_names.txt").write_text("\n".join(catalogue.ENTRIES["stl10"].info.classes))
    known = torchvision.datasets.STL10
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(known, part, [[name, md5(folder / name)] for name, _ in getattr(known, part)])
    return images


def test_stl10(tmp_path, monkeypatch):
    images = write_stl10(tmp_path / "given/stl10_binary", monkeypatch)
    expect(monkeypatch, "stl10", train=18, validation=2, test=6)
    expect(monkeypatch, "stl10-unlabeled", train=22, validation=2, test=6)
    pin(monkeypatch, "stl10", tmp_path / "given")
    get_data("stl10", tmp_path / "given")
    data = load_data("stl10", download=False)
    assert torch.equal(data.fields["image"], torch.from_numpy(images[:26]))
    assert data.fields["label"].tolist() == [row % 2 for row in range(20)] + [9, 8, 7, 6, 5, 4]
    assert data.splits["validation"].tolist() == [18, 19] and data.splits["test"].tolist() == list(range(20, 26))

    more = load_data("stl10-unlabeled", download=False)
    assert list(more.fields) == ["image"] and torch.equal(more.fields["image"], torch.from_numpy(images))
    assert more.splits["train"].tolist() == [*range(18), *range(26, 30)]
    assert torch.equal(more.splits["validation"], data.splits["validation"])
    assert more.fingerprint != data.fingerprint


def test_imagenette(tmp_path, monkeypatch):
    wnids = sorted(torchvision.datasets.Imagenette._WNID_TO_CLASS)
    first = [torchvision.datasets.Imagenette._WNID_TO_CLASS[wnid][0] for wnid in wnids]
    assert tuple(first) == catalogue.ENTRIES["imagenette"].info.classes
    for split, count in (("train", 12), ("val", 2)):
        for number, wnid in enumerate(wnids):
            folder = tmp_path / "given/imagenette2-160" / split / wnid
            folder.mkdir(parents=True)
            for picture in range(count):  # wide and tall; the middle, which the crop keeps, says the class
                pixels = np.full((40, 80), 255, np.uint8)
                pixels[:, 20:60] = 20 * number
                image = Image.fromarray(pixels if picture % 2 else np.ascontiguousarray(pixels.T))
                (image if picture % 3 else image.convert("RGB")).save(folder / f"{wnid}_{picture:02}.JPEG", quality=95)
    expect(monkeypatch, "imagenette", train=110, validation=10, test=20)
    pin(monkeypatch, "imagenette", tmp_path / "given", count=140)
    get_data("imagenette", tmp_path / "given")
    data = load_data("imagenette", 24, download=False)
    assert data.fields["image"].shape == (140, 3, 24, 24)
    middle = data.fields["image"][:, :, 2:-2, 2:-2].float().mean((1, 2, 3))
    assert torch.allclose(middle, data.fields["label"] * 20.0, atol=4)
    assert data.splits["validation"].tolist() == list(range(11, 120, 12)) and data.splits["test"].tolist() == list(
        range(120, 140)
    )
    assert torch.equal(data.fields["label"][data.splits["validation"]], torch.arange(10))

    (tmp_path / "given/imagenette2-160/val" / wnids[0] / f"{wnids[0]}_00.JPEG").write_bytes(b"no picture")
    pin(monkeypatch, "imagenette", tmp_path / "given")
    get_data("imagenette", tmp_path / "given" / "imagenette2-160.tgz")
    with pytest.raises(ZooError, match=f"{wnids[0]}_00.JPEG can't be decoded"):
        load_data("imagenette", 24, download=False)


def test_held_out_pictures_are_the_last_of_each_class():
    labels = np.array([0, 1] * 30 + [2] * 5)
    splits = readers._hold_out(labels, most=2)
    assert splits["validation"].tolist() == [56, 57, 58, 59, 64]
    assert sorted([*splits["train"], *splits["validation"]]) == list(range(65))

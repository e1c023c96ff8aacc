"""Shards are those of the library webdataset: what it writes is read here, and what is written here it reads."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.folder import load_folder
from zoo.data.shard_writer import write_shards
from zoo.data.shards import load_shards

wds = pytest.importorskip("webdataset")
SIZE = 12


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def test_what_it_writes_is_read_here(tmp_path):
    images, labels = pictures(23), [number % 3 for number in range(23)]
    (tmp_path / "shards").mkdir()
    with wds.ShardWriter(str(tmp_path / "shards" / "train-%06d.tar"), maxcount=9, verbose=0) as writer:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            writer.write({"__key__": f"{number:06d}", "png": image, "cls": label, "txt": f"picture {number}"})
    dataset = load_shards(str(tmp_path / "shards"), SIZE)
    assert torch.equal(dataset.fields["image"][:], torch.from_numpy(images).permute(0, 3, 1, 2))
    assert dataset.fields["label"].tolist() == labels
    assert [dataset.fields["text"][row] for row in range(23)] == [f"picture {number}" for number in range(23)]
    assert sum(map(len, dataset.splits.values())) == 23 and len(list((tmp_path / "shards").iterdir())) == 3


def test_what_is_written_here_it_reads(tmp_path):
    for number, image in enumerate(pictures(30)):
        path = tmp_path / "pictures" / "abc"[number % 3] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    folder = load_folder(tmp_path / "pictures", SIZE)
    wanted = {(image.numpy().tobytes(), int(label)) for image, label in zip(folder.fields["image"], folder.fields["label"], strict=True)}
    shards = sorted(map(str, Path(write_shards(tmp_path / "pictures", tmp_path / "shards", 8)).glob("*.tar")))
    found = list(wds.WebDataset(shards, shardshuffle=False, empty_check=False))
    read = {(np.asarray(Image.open(io.BytesIO(sample["png"]))).transpose(2, 0, 1).tobytes(), int(sample["cls"])) for sample in found}
    assert len(shards) >= 3 and len(found) == 30 and read == wanted
    dataset = load_shards(str(tmp_path / "shards"), SIZE)
    ours = {(image.numpy().tobytes(), int(label)) for image, label in zip(dataset.fields["image"][:], dataset.fields["label"], strict=True)}
    assert ours == wanted

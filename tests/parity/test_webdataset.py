"""Shards are those of the library webdataset: what it writes is read here, and what is written here it reads."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.folder.folder import load_folder
from zoo.data.shards.shards import load_shards
from zoo.data.shards.writer import write_shards
from zoo.errors import ZooError

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
    wanted = {
        (image.numpy().tobytes(), int(label))
        for image, label in zip(folder.fields["image"], folder.fields["label"], strict=True)
    }
    shards = sorted(map(str, Path(write_shards(tmp_path / "pictures", tmp_path / "shards", 8)).glob("*.tar")))
    found = list(wds.WebDataset(shards, shardshuffle=False, empty_check=False))
    read = {
        (np.asarray(Image.open(io.BytesIO(sample["png"]))).transpose(2, 0, 1).tobytes(), int(sample["cls"]))
        for sample in found
    }
    assert len(shards) >= 3 and len(found) == 30 and read == wanted
    dataset = load_shards(str(tmp_path / "shards"), SIZE)
    ours = {
        (image.numpy().tobytes(), int(label))
        for image, label in zip(dataset.fields["image"][:], dataset.fields["label"], strict=True)
    }
    assert ours == wanted


def numbered(folder: Path, count: int) -> Path:
    """Shards train-000.tar, ... of three pictures each."""
    folder.mkdir()
    for shard in range(count):
        with wds.TarWriter(str(folder / f"train-{shard:03}.tar")) as writer:
            for number in range(3):
                writer.write({"__key__": f"{shard}-{number}", "png": pictures(3)[number], "cls": shard})
    return folder


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("train-{000..011}.tar", range(12)),
        ("train-{003..010}.tar", range(3, 11)),
        ("train-0{08..10}.tar", range(8, 11)),
        ("train-{000,002,011}.tar", (0, 2, 11)),
        ("train-0{0,1}{0..1}.tar", (0, 1, 10, 11)),
        ("train-000.tar::FOLDER/train-{004..005}.tar", (0, 4, 5)),
        ("train-000.tar::FOLDER/train-007.tar", (0, 7)),
    ],
)
def test_shards_named_in_braces_are_those_that_it_reads(name, labels, tmp_path):
    folder = numbered(tmp_path / "shards", 12)
    name = f"{folder}/{name}".replace("FOLDER", str(folder))
    theirs = [int(sample["cls"]) for sample in wds.WebDataset(name, shardshuffle=False, empty_check=False)]
    assert load_shards(f"shards:{name}", SIZE).fields["label"].tolist() == theirs == sorted(3 * list(labels))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("train-{000..003}.tar", r"there is no shard .*train-003\.tar, one of the 4 of .*; get it"),
        ("train-{000..999999999}.tar", "names 1,000,000,000 shards, and more than 1,000,000"),
        ("train-{0..999999}{0..999999}.tar", "more than 1,000,000"),
        ("{a,b}" * 40 + ".tar", "more than 1,000,000"),
        ("train-{0..9999999999999}.tar", "isn't a name of shards in braces"),
        ("train-{{0..9},a}.tar", "isn't a name of shards in braces"),
        ("train-{000..002.tar", "isn't a name of shards in braces; such are train-{000000..000146}.tar"),
    ],
)
def test_names_in_braces_that_are_refused(name, why, tmp_path):
    with pytest.raises(ZooError, match=why):
        load_shards(f"{numbered(tmp_path / 'shards', 3)}/{name}", SIZE)


def test_braces_in_the_name_of_a_file_are_its_own(tmp_path):
    (numbered(tmp_path / "shards", 1) / "train-000.tar").rename(tmp_path / "shards" / "train-{a,b}.tar")
    assert len(load_shards(str(tmp_path / "shards" / "train-{a,b}.tar"), SIZE).fields["label"]) == 3


def test_braces_without_webdataset(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(
        ZooError, match=r"need webdataset; pip install 'pretext-zoo\[webdataset\]', or name them as a pattern"
    ):
        load_shards(f"{numbered(tmp_path / 'shards', 3)}/train-{{000..002}}.tar", SIZE)

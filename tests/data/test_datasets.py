"""Named sets from the outside: the list, loading, caching, resizing, and the sentences."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.data import datasets
from zoo.data.datasets import data_info, get_data, list_data, load_data, resolve
from zoo.data.info import Settings
from zoo.data.media.resize import resize
from zoo.data.named import catalogue
from zoo.data.sources import sources
from zoo.errors import ZooError

ROOT = Path(datasets.__file__).parents[2]
HOME = os.environ.get("ZOO_HOME")  # as the person who runs the tests has it


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def clothes(tmp_path, monkeypatch):
    """fashion-mnist with 24 training pictures and 6 for testing; pixel (0, 0) says the row."""
    asked = []

    def way(folder: Path) -> Path:
        asked.append(folder)
        for part, begin, count in (("train", 0, 24), ("t10k", 24, 6)):
            images = np.full((count, 28, 28), 100, np.uint8)
            images[:, 0, 0] = np.arange(begin, begin + count)
            head = bytes([0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 28, 0, 0, 0, 28])
            (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
            labels = bytes(row % 10 for row in range(begin, begin + count))
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, count]) + labels)
        return folder

    way.label = "a stand-in"
    (tmp_path / "pin").mkdir()
    pin = sources.digest_of(sources.hash_files(way(tmp_path / "pin")))
    asked.clear()
    known = replace(sources.SOURCES["fashion-mnist"], ways=(way,), digest=pin)
    monkeypatch.setitem(sources.SOURCES, "fashion-mnist", known)
    entry = catalogue.ENTRIES["fashion-mnist"]
    info = replace(entry.info, splits={"train": 20, "validation": 4, "test": 6})
    monkeypatch.setitem(catalogue.ENTRIES, "fashion-mnist", replace(entry, info=info))
    return asked


def test_listing_needs_neither_torch_nor_numpy():
    code = (
        "import sys, zoo.data.datasets as d; d.list_data(); d.data_info('emoji'); "
        "assert not {'torch', 'numpy', 'sklearn', 'PIL'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_entries_are_complete():
    infos = list_data()
    assert [info.name for info in infos] == sorted(catalogue.ENTRIES)
    assert {"fashion-mnist", "digits", "emoji", "cifar10", "cifar100", "stl10", "imagenette"} <= set(catalogue.ENTRIES)
    notice = (ROOT / "NOTICE").read_text()
    for info in infos:
        entry = catalogue.ENTRIES[info.name]
        assert info.fields[0] == "image" and info.channels in (1, 3) and info.size > 0
        assert len(set(info.classes)) == len(info.classes) and ("label" in info.fields) == bool(info.classes)
        assert list(info.splits) == ["train", "validation", "test"] and min(info.splits.values()) > 0
        assert all((info.version, info.license, info.attribution, info.homepage.startswith("https://"), info.summary))
        assert f"`{info.name}`" in notice and data_info(info.name) == info
        module, function = entry.reader.split(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert entry.source is None or entry.source in sources.SOURCES


@pytest.mark.parametrize(
    "name, words",
    [
        ("fashion-mnst", "did you mean fashion-mnist"),
        ("", "known: "),
        (None, "no data set None"),
        (["digits"], "no data set"),
        ("../digits", "no data set"),
        ("Digits", "did you mean digits"),
    ],
)
def test_unknown_names(name, words):
    for call in (data_info, load_data, get_data):
        with pytest.raises(ZooError, match=words):
            call(name)


def test_a_bare_folder_is_told_how_to_be_written(tmp_path):
    with pytest.raises(ZooError, match=f"write folder:{tmp_path}"):
        load_data(str(tmp_path))


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "32", 100_000])
def test_wrong_sizes(size):
    with pytest.raises(ZooError, match="data.size is"):
        load_data("digits", size)


def test_folders_go_to_the_folder_reader(tmp_path, monkeypatch):
    from zoo.data.folder import folder

    monkeypatch.setattr(folder, "folder_info", lambda path, settings: ("info", path, settings))
    monkeypatch.setattr(folder, "load_folder", lambda path, **given: ("set", path, given))
    assert data_info("folder:some/where") == ("info", "some/where", Settings())
    assert load_data("folder:some/where", 48) == ("set", "some/where", vars(Settings(size=48)))
    given = {"bad_samples": "skip", "bad_share": 0.5, "rate": 8000, "seconds": 1.5, "length": 9, "lines": True}
    assert load_data("folder:some/where", **given) == ("set", "some/where", vars(Settings(**given)))
    assert resolve("folder:some/where", Settings(rate=8000)).info() == ("info", "some/where", Settings(rate=8000))
    with pytest.raises(ZooError, match="needs no getting"):
        get_data("folder:some/where")


def test_digits():
    data = load_data("digits")
    image, label = data.fields["image"], data.fields["label"]
    assert image.shape == (1797, 1, 8, 8) and image.dtype == torch.uint8 and image.max() == 255 and image.min() == 0
    assert label.shape == (1797,) and label.dtype == torch.int64
    everything = torch.cat(list(data.splits.values()))
    assert torch.equal(everything.sort().values, torch.arange(1797))
    for split, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
        counts = torch.bincount(label[data.splits[split]], minlength=10) / torch.bincount(label)
        assert ((counts - share).abs() < 0.01).all()
    assert load_data("digits").fingerprint == data.fingerprint
    larger = load_data("digits", 32)
    assert larger.fields["image"].shape == (1797, 1, 32, 32) and larger.info.size == 32
    assert larger.fingerprint != data.fingerprint and len(data.fingerprint) == 64
    assert (get_data("digits") / "digits.csv.gz").exists()
    with pytest.raises(ZooError, match="comes with scikit-learn"):
        get_data("digits", "somewhere")


def test_other_digits_are_refused(monkeypatch):
    import sklearn.datasets

    found = sklearn.datasets.load_digits()
    found.target[0] = 9
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: found)
    with pytest.raises(ZooError, match="aren't those of version 1"):
        load_data("digits")


def test_a_set_is_got_decoded_and_kept(clothes, home, monkeypatch):
    data = load_data("fashion-mnist")
    assert data.fields["image"].shape == (30, 1, 28, 28) and data.fields["image"].dtype == torch.uint8
    assert data.fields["image"][:, 0, 0, 0].tolist() == list(range(30))
    assert data.fields["label"].tolist() == [row % 10 for row in range(30)]
    assert {name: index.tolist() for name, index in data.splits.items()} == {
        "train": list(range(20)),
        "validation": list(range(20, 24)),
        "test": list(range(24, 30)),
    }

    def never(*arguments):
        raise AssertionError("decoded again")

    monkeypatch.setattr(datasets, "_read", never)
    again = load_data("fashion-mnist", download=False)
    assert torch.equal(again.fields["image"], data.fields["image"]) and again.fingerprint == data.fingerprint
    assert len(clothes) == 1
    again.fields["image"][0] = 7  # what a caller does to a set stays with the caller
    assert torch.equal(load_data("fashion-mnist").fields["image"], data.fields["image"])


@pytest.mark.parametrize("limit", [0, 1 << 40])
def test_large_arrays_are_mapped_and_still_private(clothes, monkeypatch, limit):
    monkeypatch.setattr(datasets, "MAPPED", limit)
    first = load_data("fashion-mnist")
    first.fields["image"][0] = 7
    assert load_data("fashion-mnist").fields["image"][0, 0, 5, 5] == 100


@pytest.mark.parametrize("how", ["changed", "cut", "missing", "index"])
def test_a_damaged_cache_is_made_anew(clothes, home, how):
    data = load_data("fashion-mnist")
    folder = home / "data/fashion-mnist/decoded/fashion-mnist-28"
    path = folder / "image.npy"
    if how == "changed":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "missing":
        path.unlink()
    else:
        (folder / "index.json").write_text("{}")
    again = load_data("fashion-mnist", download=False)
    assert torch.equal(again.fields["image"], data.fields["image"])
    assert len(clothes) == 1 and [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_damaged_raw_files_are_got_again_or_named(clothes, home):
    load_data("fashion-mnist")
    path = home / "data/fashion-mnist/raw/train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x63")
    with pytest.raises(ZooError, match=f"{path} has been changed.*`zoo data get fashion-mnist`"):
        load_data("fashion-mnist", 14, download=False)
    assert load_data("fashion-mnist", 14).fields["label"].max() == 9
    assert len(clothes) == 2


def test_other_sizes_are_kept_beside(clothes, home):
    whole, half = load_data("fashion-mnist"), load_data("fashion-mnist", 14)
    assert half.fields["image"].shape == (30, 1, 14, 14) and half.info.size == 14
    assert torch.equal(half.fields["image"], resize(whole.fields["image"], 14))
    assert half.fingerprint != whole.fingerprint
    names = sorted(path.name for path in (home / "data/fashion-mnist/decoded").iterdir())
    assert names == ["fashion-mnist-14", "fashion-mnist-28"]


def test_a_set_with_other_counts_is_refused(clothes, monkeypatch):
    entry = catalogue.ENTRIES["fashion-mnist"]
    info = replace(entry.info, splits={"train": 21, "validation": 4, "test": 6})
    monkeypatch.setitem(catalogue.ENTRIES, "fashion-mnist", replace(entry, info=info))
    with pytest.raises(ZooError, match="fashion-mnist has .* where version 1 has"):
        load_data("fashion-mnist")


def test_threads_decode_once(clothes):
    """The cache appears whole: whoever begins at once gets the same pictures."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_data("fashion-mnist", 7), range(4)))
    assert len(clothes) == 1
    assert all(torch.equal(one.fields["image"], found[0].fields["image"]) for one in found)


def test_resize_is_antialiased_and_centred():
    stripes = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    assert (resize(stripes, 16)[..., 1:-1].int() - 128).abs().max() <= 2  # without antialiasing: 0 or 255
    wide = torch.zeros(3, 3, 20, 60, dtype=torch.uint8)
    wide[..., 20:40] = 200
    assert (resize(wide, 10)[..., 1:-1] == 200).all() and resize(wide, 10).shape == (3, 3, 10, 10)
    tall = wide.transpose(2, 3)
    assert torch.equal(resize(tall, 10), resize(wide, 10).transpose(2, 3))
    same = torch.randint(0, 256, (2, 1, 9, 9), dtype=torch.uint8)
    assert resize(same, 9) is same
    assert resize(torch.zeros(1, 3, 7, 1000, dtype=torch.uint8), 13).shape == (1, 3, 13, 13)


def test_resize_agrees_with_torchvision():
    from torchvision.transforms.v2 import functional

    images = torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for size in (8, 32, 64):
        theirs = functional.resize(images, [size, size], antialias=True)
        assert (resize(images, size).int() - theirs.int()).abs().max() <= 1


def test_the_real_fashion_mnist(monkeypatch):
    if HOME is None:
        monkeypatch.delenv("ZOO_HOME")
    else:
        monkeypatch.setenv("ZOO_HOME", HOME)
    if sources.recorded_digest(sources.SOURCES["fashion-mnist"]) is None:
        pytest.skip("fashion-mnist isn't in the data home; `zoo data get fashion-mnist` brings it")
    data = load_data("fashion-mnist", download=False)
    assert data.fields["image"].shape == (70_000, 1, 28, 28)
    assert torch.bincount(data.fields["label"]).tolist() == [7000] * 10
    assert torch.bincount(data.fields["label"][data.splits["test"]]).tolist() == [1000] * 10
    assert data.fields["label"][:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert {name: (int(index[0]), len(index)) for name, index in data.splits.items()} == {
        "train": (0, 50_000),
        "validation": (50_000, 10_000),
        "test": (60_000, 10_000),
    }

"""folder:PATH: which files count, what the folders mean, and the cache."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from zoo.data import datasets
from zoo.data.folder import cache as caching
from zoo.data.folder import folder as module
from zoo.data.folder.folder import folder_info, load_folder
from zoo.errors import ZooError


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ZOO_HOME", str(place))
    return place


def fill(folder: Path, *names: str, colour=None) -> Path:
    for k, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), colour or (k * 37 % 256, k * 11 % 256, 90)).save(path)
    return folder


def caches(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "cache").glob("*") if not path.name.endswith(".lock"))


# ---- what can't be read ------------------------------------------------------------------------------------
def test_an_unreadable_image_is_named_and_leaves_no_cache(tmp_path, home):
    fill(tmp_path, "good.png", "sub/bad.png")
    good = (tmp_path / "sub" / "bad.png").read_bytes()
    (tmp_path / "sub" / "bad.png").write_bytes(good[:40])
    with pytest.raises(ZooError, match=r"sub/bad\.png can't be read \(.+\); remove it or mend it$"):
        load_folder(tmp_path)
    assert caches(home) == []
    (tmp_path / "sub" / "bad.png").write_bytes(good)
    assert len(load_folder(tmp_path).fields["image"]) == 2


def test_several_unreadable_images_are_named_together(tmp_path):
    fill(tmp_path, *(f"{k}.png" for k in range(4)))
    for k in range(7):
        (tmp_path / f"bad{k}.jpg").write_bytes(b"no")
    with pytest.raises(ZooError, match=r"^7 images can't be read: .*bad0\.jpg.*bad4\.jpg.*; \.\.\.$"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "pictures", "there is no folder .*pictures; did you mean picture"),
        (lambda root: root / "picture" / "a.txt", "a.txt is a file; give the folder"),
        (
            lambda root: root / "picture",
            "holds no image and at least two are needed; other files there: 1 .heic, 1 .txt; images are",
        ),
        (lambda root: root / "one", "holds one image and at least two"),
        (lambda root: "folder:", "folder: needs a path"),
    ],
)
def test_folders_that_are_none(tmp_path, make, words):
    (tmp_path / "picture").mkdir()
    (tmp_path / "picture" / "a.txt").write_text("x")
    (tmp_path / "picture" / "a.heic").write_text("x")
    fill(tmp_path / "one", "a.png")
    for function in (folder_info, load_folder):
        with pytest.raises(ZooError, match=words):
            function(make(tmp_path))


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "64", 100_000])
def test_sizes_that_are_none(tmp_path, size):
    with pytest.raises(ZooError, match="data.size is"):
        load_folder(fill(tmp_path, "a.png", "b.png"), size)


# ---- which files -------------------------------------------------------------------------------------------
def test_what_is_no_picture_of_the_folder_is_ignored(tmp_path):
    fill(tmp_path, "a.PNG", "b/c/d.Jpg", "e.webp")
    fill(tmp_path, ".hidden.png", ".git/x.png", "__MACOSX/x.png", "b/._d.png")
    for name in (".DS_Store", "notes.txt", "b/labels.csv", "Thumbs.db"):
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "pipe.png")
    _, files, _ = module.look(tmp_path)
    assert [file.path for file in files] == ["a.PNG", "b/c/d.Jpg", "e.webp"]


def test_links(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    fill(root, "real/a.png", "real/b.png")
    fill(outside, "c.png")
    (root / "again").symlink_to(root / "real")  # twice the same folder: once
    (root / "real" / "up").symlink_to(root)  # a loop
    (root / "above").symlink_to(tmp_path)  # a loop over the folder's own parent
    (root / "itself.png").symlink_to("itself.png")
    (root / "linked").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (root / "d.png").symlink_to(outside / "c.png")
    _, files, _ = module.look(root)
    assert [file.path for file in files] == ["d.png", "linked/c.png", "real/a.png", "real/b.png"]
    (root / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(ZooError, match=r"gone.png can't be read \(No such file"):
        load_folder(root)


# ---- what the folders mean ---------------------------------------------------------------------------------
def test_a_class_per_folder(tmp_path):
    fill(
        tmp_path,
        *(f"{kind}/{sub}{k}.png" for kind in ("dog", "cat") for sub in ("", "deep/er/") for k in range(10)),
    )
    data = load_folder(tmp_path, size=8)
    assert data.info.classes == ("cat", "dog") and data.info.fields == ("image", "label")
    assert data.fields["label"].dtype == torch.int64 and data.fields["label"].tolist() == [0] * 20 + [1] * 20
    assert data.fields["image"].shape == (40, 3, 8, 8) and data.fields["image"].dtype == torch.uint8
    assert data.info == folder_info(tmp_path).__class__(**{**vars(folder_info(tmp_path)), "size": 8})


def test_unlabelled_data_have_no_label(tmp_path):
    data = load_folder(fill(tmp_path, "a.png", "b.png"))
    assert set(data.fields) == {"image"} and data.info.fields == ("image",) and "unlabelled" in data.info.summary


# ---- the cache ---------------------------------------------------------------------------------------------
def test_a_second_load_decodes_and_writes_nothing(tmp_path, home, monkeypatch):
    fill(tmp_path, *(f"{k}.png" for k in range(12)))
    first = load_folder(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    monkeypatch.setattr(caching, "_build", lambda *_: pytest.fail("built again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = load_folder(tmp_path)
    assert torch.equal(first.fields["image"], second.fields["image"]) and first.fingerprint == second.fingerprint
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_the_map_is_private(tmp_path, home):
    fill(tmp_path, "a.png", "b.png")
    data = load_folder(tmp_path)
    assert "images.npy" in Path("/proc/self/maps").read_text()
    kept = data.fields["image"].clone()
    data.fields["image"].zero_()
    assert torch.equal(load_folder(tmp_path).fields["image"], kept) and kept.any()


@pytest.mark.parametrize("change", ["add", "remove", "rename", "content", "touch"])
def test_a_change_makes_the_cache_anew(tmp_path, home, change):
    fill(tmp_path, *(f"{k}.png" for k in range(6)))
    before, names = load_folder(tmp_path), caches(home)
    first = tmp_path / "0.png"
    if change == "add":
        fill(tmp_path, "new.png")
    elif change == "remove":
        first.unlink()
    elif change == "rename":
        first.rename(tmp_path / "zero.png")
    elif change == "content":
        Image.new("RGB", (12, 10), "white").save(first)
    else:
        os.utime(first, ns=(1, 1))
    after = load_folder(tmp_path)
    assert len(caches(home)) == 1 and caches(home) != names  # the old one is gone
    assert (after.fingerprint == before.fingerprint) == (change == "touch")
    assert len(after.fields["image"]) == {"add": 7, "remove": 5}.get(change, 6)
    assert len(before.fields["image"].sum((1, 2, 3))) == 6  # and whoever had it open still has
    if change == "content":
        assert (after.fields["image"][0] == 255).all()


def test_two_files_that_change_places_are_seen(tmp_path):
    """Of one size and one time: their names alone are others."""
    for name, shade in (("a", 0), ("b", 255), ("c", 100)):
        Image.new("L", (8, 8), shade).save(tmp_path / f"{name}.bmp")
        os.utime(tmp_path / f"{name}.bmp", ns=(1, 1))
    before = load_folder(tmp_path).fields["image"][:, 0, 0, 0].tolist()
    for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
        (tmp_path / f"{old}.bmp").rename(tmp_path / f"{new}.bmp")
    assert before == [0, 255, 100] and load_folder(tmp_path).fields["image"][:, 0, 0, 0].tolist() == [255, 0, 100]


def test_a_name_that_no_card_can_hold_is_refused_at_once(tmp_path):
    place = tmp_path / "a\u202eb"
    place.mkdir()
    fill(place, "a.png", "b.png")
    with pytest.raises(ZooError, match=r"a\?b has characters that can't be printed"):
        datasets.data_info(f"folder:{place}")


def test_fingerprint_is_of_names_content_and_size_alone(tmp_path):
    for place in ("here", "there/deep"):
        fill(tmp_path / place, "x/a.png", "y/b.png")
    here, there = load_folder(tmp_path / "here"), load_folder(tmp_path / "there" / "deep")
    assert here.fingerprint == there.fingerprint and len(here.fingerprint) == 64
    assert load_folder(tmp_path / "here", 32).fingerprint != here.fingerprint
    (tmp_path / "here" / "x").rename(tmp_path / "here" / "z")
    assert load_folder(tmp_path / "here").fingerprint != here.fingerprint


def test_two_sizes_stay_side_by_side(tmp_path, home):
    fill(tmp_path, "a.png", "b.png")
    assert load_folder(tmp_path, 32).info.size == 32 and load_folder(tmp_path).info.size == 64
    assert len(caches(home)) == 2


def test_relative_and_home_paths(tmp_path, monkeypatch, home):
    fill(tmp_path / "pictures", "a.png", "b.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {
        load_folder(path).info.name
        for path in ("pictures", "./pictures/", "~/pictures", "folder:pictures", tmp_path / "pictures")
    }
    assert names == {
        "folder:pictures",
        "folder:./pictures/",
        "folder:~/pictures",
        f"folder:{tmp_path}/pictures",
    }
    assert len(caches(home)) == 1


def test_names_that_are_not_utf8(tmp_path):
    fill(tmp_path, "a.png", "b.png")
    os.rename(os.fsencode(tmp_path / "a.png"), os.fsencode(tmp_path) + b"/\xff\xfe.png")
    assert len(load_folder(tmp_path).fields["image"]) == 2
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.png", "wb"):
        pass
    with pytest.raises(ZooError, match=r"\\xff\\xfe\.png can't be read") as caught:
        load_folder(tmp_path)
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("damage", ["truncated", "emptied", "garbage", "no index", "bad index"])
def test_a_damaged_cache_is_made_anew(tmp_path, home, damage):
    fill(tmp_path, "a.png", "b.png")
    good = load_folder(tmp_path)
    kept = good.fields["image"].clone()
    place = home / "cache" / caches(home)[0]
    pixels, index = place / "images.npy", place / "index.json"
    {
        "truncated": lambda: os.truncate(pixels, 500),
        "emptied": lambda: pixels.write_bytes(b""),
        "garbage": lambda: pixels.write_bytes(b"PK\3\4" * 99),
        "no index": index.unlink,
        "bad index": lambda: index.write_text(json.dumps([1])),
    }[damage]()
    again = load_folder(tmp_path)
    assert torch.equal(again.fields["image"], kept) and again.fingerprint == good.fingerprint


def run(code: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_killed_half_way_leaves_nothing_valid(tmp_path, home):
    fill(tmp_path, *(f"{k}.png" for k in range(20)))
    code = """
import os, signal, sys
from zoo.data.folder import folder
from zoo.data.media import decode
plain = decode.decode
def decoding(path, size):
    if path.name == "7.png": os.kill(os.getpid(), signal.SIGKILL)
    return plain(path, size)
decode.decode = decoding
folder.load_folder(sys.argv[1])
"""
    assert run(code, tmp_path).wait() == -9
    assert [name for name in caches(home) if not name.startswith(".")] == [] and len(
        caches(home)
    ) == 1  # what it left is hidden
    assert len(load_folder(tmp_path).fields["image"]) == 20
    assert len(caches(home)) == 1 and not caches(home)[0].startswith(".")  # and cleared away


def test_two_processes_at_once_decode_once(tmp_path, home):
    fill(tmp_path / "pictures", *(f"{k}.png" for k in range(40)))
    log = tmp_path / "log"
    code = """
import sys, time
from zoo.data.folder import folder
from zoo.data.media import decode
plain = decode.decode
def slowly(path, size):
    time.sleep(0.01)
    with open(sys.argv[2], "a") as log: log.write("x")
    return plain(path, size)
decode.decode = slowly
print(folder.load_folder(sys.argv[1]).fingerprint)
"""
    both = [run(code, tmp_path / "pictures", log) for _ in range(2)]
    words = [process.communicate()[0].strip() for process in both]
    assert words[0] == words[1] == load_folder(tmp_path / "pictures").fingerprint
    assert len(log.read_text()) == 40 and len(caches(home)) == 1


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    fill(tmp_path / "pictures", "a.png", "b.png")
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ZooError, match="file/home/cache can't be written: .*ZOO_HOME can name another folder"):
        load_folder(tmp_path / "pictures")


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_a_full_disk(tmp_path, home, monkeypatch, when):
    fill(tmp_path, "a.png", "b.png")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if when == "before":
            patch.setattr(caching.shutil, "disk_usage", lambda _: type("usage", (), {"free": 100})())
        else:
            patch.setattr(caching.os, "fsync", full)
        with pytest.raises(ZooError, match="the disk is full and 24,576 bytes are needed.*ZOO_HOME"):
            load_folder(tmp_path)
    assert caches(home) == []
    assert len(load_folder(tmp_path).fields["image"]) == 2


def test_only_a_few_decoded_images_wait(tmp_path):
    calls = []
    files = [tmp_path / f"{k:04}.png" for k in range(1000)]
    results = caching.decoded(files, lambda path: calls.append(path) or path.name)
    assert [next(results) for _ in range(3)] == ["0000.png", "0001.png", "0002.png"]
    assert len(calls) <= 3 + 4 * 8
    assert list(results) == [file.name for file in files[3:]] and len(calls) == 1000


def test_info_imports_no_torch_and_no_pillow(tmp_path):
    fill(tmp_path, "a/a.png", "b/b.png")
    code = """
import sys
from zoo.data.folder.folder import folder_info
folder_info(sys.argv[1])
print({"torch", "PIL", "numpy"} & set(sys.modules))
"""
    assert run(code, tmp_path).communicate()[0].strip() == "set()"

"""R14, R15, R16: pictures that can't be read, decoding that is killed, decoding that never ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killing import within
from PIL import Image

import zoo
from zoo import cli
from zoo.card import read_card
from zoo.data.folder import cache as caching
from zoo.data.folder.folder import load_folder
from zoo.data.media import decode as decoding
from zoo.errors import ZooError
from zoo.recipe import read

FUZZ = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch) -> Path:
    place = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ZOO_HOME", str(place))
    return place


def picture(number: int) -> Image.Image:
    """No two alike, and none black."""
    return Image.new("RGB", (24, 20), (10 + number * 7 % 240, 250 - number * 3 % 200, 60 + number % 100))


def fill(folder: Path, count: int, classes: tuple[str, ...] = ("cat", "dog")) -> list[str]:
    """Good pictures in a folder per class; their paths below it, sorted as the reader sorts them."""
    names = [f"{classes[number % len(classes)]}/{number:03}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name)
    return sorted(names)


def noisy_png() -> bytes:
    import io

    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def bomb() -> bytes:
    """20,000 x 20,000 pixels, well formed as far as anybody reads it, in 60 bytes."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", 20_000, 20_000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0xFF]) + data[len(data) // 2 + 1 :]


BAD = {
    "corrupt": lambda: flipped(noisy_png()),
    "truncated": lambda: noisy_png()[:3000],
    "empty": lambda: b"",
    "bomb": bomb,
    "no picture": lambda: b"hello, world\n" * 30,
    "missing": lambda: None,
}
WRONG = {
    "corrupt": "",
    "truncated": "",
    "empty": "the file is empty",
    "bomb": "pixels",
    "no picture": "isn't an image",
    "missing": "No such file",
}


def spoil(path: Path, kind: str) -> None:
    path.unlink()
    if (data := BAD[kind]()) is None:
        path.symlink_to("nowhere.png")
    else:
        path.write_bytes(data)


# ---- R14: pictures that can't be read ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", BAD)
def test_r14_the_path_is_named_by_default(kind, tmp_path, home):
    fill(tmp_path, 12)
    spoil(tmp_path / "cat" / "004.png", kind)
    with pytest.raises(ZooError) as caught:
        load_folder(tmp_path)
    text = str(caught.value)
    assert (
        text.startswith(f"the image {tmp_path}/cat/004.png can't be read (")
        and text.endswith("); remove it or mend it")
        and WRONG[kind] in text
    )
    assert "\n" not in text and not [path for path in (home / "cache").iterdir() if path.suffix != ".lock"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", BAD)
def test_r14_skip_leaves_out_what_replace_fills(kind, tmp_path, home):
    names = fill(tmp_path, 40)
    whole = load_folder(tmp_path, size=8)
    bad = max(
        row for row in whole.splits["train"].tolist() if whole.fields["label"][row] == 0
    )  # after it come those of another class
    spoil(tmp_path / names[bad], kind)

    left = load_folder(tmp_path, 8, "skip", 0.03)
    keep = [row for row in range(40) if row != bad]
    assert torch.equal(left.fields["image"], whole.fields["image"][keep]) and torch.equal(
        left.fields["label"], whole.fields["label"][keep]
    )
    assert sum(left.info.splits.values()) == sum(map(len, left.splits.values())) == 39
    where = {names[row]: split for split, rows in whole.splits.items() for row in rows.tolist()}
    still = {names[keep[row]]: split for split, rows in left.splits.items() for row in rows.tolist()}
    assert still == {name: split for name, split in where.items() if name != names[bad]}, (
        "no other picture moves to another split"
    )
    (entry,) = left.bad
    assert entry["path"] == names[bad] and WRONG[kind] in entry["reason"] and set(entry) == {"path", "reason"}

    full = load_folder(tmp_path, 8, "replace", 0.03)
    (entry,) = full.bad
    other = names.index(entry["replaced_by"])
    assert torch.equal(full.fields["image"][keep], whole.fields["image"][keep]) and torch.equal(
        full.fields["image"][bad], whole.fields["image"][other]
    )
    assert (
        torch.equal(full.fields["label"], whole.fields["label"])
        and whole.fields["label"][other] == whole.fields["label"][bad]
    )
    assert all(torch.equal(full.splits[split], rows) for split, rows in whole.splits.items())
    assert any({bad, other} <= set(rows.tolist()) for rows in full.splits.values()), (
        "a picture of one split stands in for one of another"
    )

    lists = sorted((home / "cache").glob("*/bad_samples.jsonl"))
    assert [json.loads(line)["path"] for file in lists for line in file.read_text().splitlines()] == [names[bad]] * 2
    prints = {data.fingerprint for data in (whole, left, full)}
    assert len(prints) == 3, "what was done about bad pictures is part of the fingerprint"


def test_r14_the_outcome_is_the_same_each_time_and_whole_folders_don_t_differ(tmp_path, monkeypatch, tmp_path_factory):
    fill(tmp_path, 30)
    prints = {load_folder(tmp_path, 8, way, 0.5).fingerprint for way in ("raise", "skip", "replace")}
    assert len(prints) == 1, "a folder without bad pictures is the same data whatever the policy"
    for name in ("cat/002.png", "dog/007.png"):
        (tmp_path / name).write_bytes(b"")
    for way in ("skip", "replace"):
        first = load_folder(tmp_path, 8, way, 0.5)
        again = load_folder(tmp_path, 8, way, 0.5)
        monkeypatch.setenv("ZOO_HOME", str(tmp_path_factory.mktemp("elsewhere")))
        anew = load_folder(tmp_path, 8, way, 0.5)
        for other in (again, anew):
            assert torch.equal(first.fields["image"], other.fields["image"]) and (first.fingerprint, first.bad) == (
                other.fingerprint,
                other.bad,
            )


def test_r14_no_more_than_the_budget(tmp_path):
    fill(tmp_path, 40)
    for number in (1, 3):
        (tmp_path / "dog" / f"{number:03}.png").write_bytes(b"x")
    for way in ("skip", "replace"):
        with pytest.raises(
            ZooError,
            match=r"^2 of the 40 images of .* can't be read, and data.bad_share 0.001 allows 0; "
            r".*dog/001.png.*dog/003.png",
        ):
            load_folder(tmp_path, 8, way)
        assert len(load_folder(tmp_path, 8, way, 0.05).bad) == 2  # exactly the share is within it
        with pytest.raises(ZooError, match="allows 1"):  # also when a cache of a laxer policy lies there
            load_folder(tmp_path, 8, way, 0.049)
    with pytest.raises(ZooError, match="data.bad_samples is 'skp'; did you mean skip"):
        load_folder(tmp_path, 8, "skp")
    with pytest.raises(ZooError, match="data.bad_share is 2; it is a share"):
        load_folder(tmp_path, 8, "skip", 2)


def test_r14_what_nothing_can_stand_in_for(tmp_path):
    fill(tmp_path, 8)
    for path in (tmp_path / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        ZooError,
        match="dog/00..png can't be read, and the .* split has no other of its class to replace it; .* to skip",
    ):
        load_folder(tmp_path, 8, "replace", 0.9)
    for path in list((tmp_path / "cat").iterdir())[1:]:
        path.write_bytes(b"")
    with pytest.raises(ZooError, match="fewer than two images that can be read"):
        load_folder(tmp_path, 8, "skip", 0.9)


def test_r14_of_a_mended_folder_nothing_is_left_out(tmp_path):
    fill(tmp_path, 10)
    good = (tmp_path / "cat/000.png").read_bytes()
    (tmp_path / "cat/000.png").write_bytes(b"")
    assert len(load_folder(tmp_path, 8, "skip", 0.2).fields["image"]) == 9
    (tmp_path / "cat/000.png").write_bytes(good)
    data = load_folder(tmp_path, 8, "skip", 0.2)
    assert len(data.fields["image"]) == 10 and data.bad == []


def test_r14_a_recipe_says_what_is_done_and_the_run_keeps_the_list(tmp_path, capsys):
    fill(tmp_path / "pictures", 60)
    (tmp_path / "pictures/cat/004.png").write_bytes(b"no")
    recipe = {
        "data": {
            "name": f"folder:{tmp_path}/pictures",
            "batch_size": 8,
            "size": 16,
            "length": None,
            "seconds": None,
            "rate": None,
            "lines": False,
            "bad_samples": "skip",
            "bad_share": 0.02,
        },
        "backbone": {"name": "test_resnet"},
        "task": {"name": "autoencoder", "code": 4, "width": 8},
        "trainer": {"max_steps": 1, "validate_every": 0},
    }
    with pytest.raises(ZooError, match="cat/004.png"):
        zoo.pretrain(recipe, out=tmp_path / "strict", progress=False, data={"bad_samples": "raise"})
    run = zoo.pretrain(recipe, out=tmp_path / "run", progress=False)
    assert "1 images can't be read and were left out" in capsys.readouterr().err
    assert [json.loads(line)["path"] for line in (run / "bad_samples.jsonl").read_text().splitlines()] == [
        "cat/004.png"
    ]
    assert read(run / "recipe.yaml")["data"] == recipe["data"]
    card = read_card(run / "checkpoint")
    assert card["recipe"]["data"]["bad_samples"] == "skip" and not list((run / "checkpoint").glob("bad*"))
    assert (
        zoo.adapt(run, recipe["data"]["name"], mode="knn").images > 0
    )  # the card's own data are read as the recipe reads them


# ---- R14: what looks odd and is a picture --------------------------------------------------------


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 30), (200, 40, 30)).save(path, exif=exif.tobytes())


ODD = {
    "16 bits": lambda path: Image.fromarray(np.full((9, 12), 100 * 257, np.uint16)).save(path),
    "cmyk": lambda path: Image.new("CMYK", (12, 9), (0, 200, 200, 20)).save(path, format="JPEG"),
    "palette": lambda path: picture(3).convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(path),
    "turned": _turned,
    "one pixel": lambda path: Image.new("RGB", (1, 1), (200, 40, 30)).save(path),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("way", ["raise", "skip", "replace"])
def test_r14_odd_pictures_are_pictures(kind, way, tmp_path):
    names = fill(tmp_path, 6)
    row = names.index("cat/002.png")
    before = load_folder(tmp_path, 8).fields["image"][row].clone()
    ODD[kind](tmp_path / "cat/002.png")
    data = load_folder(tmp_path, 8, way)
    assert data.bad == [] and len(data.fields["image"]) == 6
    assert data.fields["image"][row].any() and not torch.equal(data.fields["image"][row], before)


# ---- R14: anything at all ------------------------------------------------------------------------


def _formats() -> list[tuple[str, bytes]]:
    """A small picture in every format that this Pillow writes and we read."""
    import io

    Image.init()
    out = []
    for name in decoding.FORMATS:
        if name in Image.SAVE:
            data = io.BytesIO()
            Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(data, name)
            out.append((name.lower(), data.getvalue()))
    return out


@st.composite
def mangled(draw) -> bytes:
    """A picture with some bytes changed, cut out or put in, and perhaps cut short; or any bytes behind a real
    beginning.
    """
    _, data = draw(st.sampled_from(_formats()))
    if draw(st.integers(0, 9)) == 0:
        return data[: draw(st.integers(0, 12))] + draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=8)) + data[at + draw(st.sampled_from([0, 1, 1, 2, 4, 8])) :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


@pytest.mark.filterwarnings("ignore")
@FUZZ
@given(mangled() | st.binary(max_size=300))
def test_r14_any_bytes_are_a_picture_or_a_sentence_that_names_them(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.png"
    path.write_bytes(data)
    result = decoding.decode(path, 8)
    if isinstance(result, ZooError):
        assert str(result).startswith(f"the image {path} can't be read (") and "\n" not in str(result) and result.reason
    else:
        assert result[0].shape == (3, 8, 8) and result[0].dtype == np.uint8


@pytest.mark.filterwarnings("ignore")
def test_r14_a_folder_of_anything_is_read_within_its_budget(tmp_path):
    fill(tmp_path, 4)
    random = np.random.default_rng(7)
    made = _formats()
    for number in range(60):
        kind, data = made[number % len(made)]
        data = bytearray(data)
        for at in random.integers(0, len(data), 3):
            data[at] = random.integers(256)
        (tmp_path / "cat" / f"x{number:02}.png").write_bytes(bytes(data[: random.integers(1, len(data) + 1)]))
    data = load_folder(tmp_path, 8, "skip", 1.0)
    assert 0 < len(data.bad) < 64 and len(data.fields["image"]) + len(data.bad) == 64


def test_r14_a_bomb_takes_no_memory(tmp_path):
    """In a process of its own, which may have no more than 600 MB beyond what it has after its imports; the picture
    would be 1.2 GB.
    """
    fill(tmp_path, 4)
    (tmp_path / "cat" / "bomb.png").write_bytes(bomb())
    code = """
import resource, sys
from zoo.data.folder.folder import load_folder
import numpy, torch
from PIL import Image
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + 600_000_000,) * 2)
print(load_folder(sys.argv[1], 8, "skip", 0.5).bad)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[{'path': 'cat/bomb.png', 'reason': 'it has more than 89,478,485 pixels'}]\n"


# ---- R15: decoding that is killed ----------------------------------------------------------------


def test_r15_killed_while_decoding_leaves_nothing_half(tmp_path, home):
    """There are no worker processes that could die alone: pictures are decoded by threads of the one process, once."""
    fill(tmp_path, 20)
    code = """
import os, signal, sys
from zoo.data.folder import folder
from zoo.data.media import decode
plain = decode.decode
def decoding(path, size):
    if path.name == "007.png": os.kill(os.getpid(), int(sys.argv[2]))
    return plain(path, size)
decode.decode = decoding
folder.load_folder(sys.argv[1], 8)
"""
    assert (
        subprocess.run([sys.executable, "-c", code, str(tmp_path), str(int(signal.SIGKILL))], check=False).returncode
        == -signal.SIGKILL
    )
    assert [path.name for path in (home / "cache").iterdir() if not path.name.startswith(".")] == []
    assert len(load_folder(tmp_path, 8).fields["image"]) == 20
    assert not list((home / "cache").glob(".*.part")), "what the killed process left is cleared away"


@pytest.mark.parametrize("bad_samples", ["raise", "skip"])
def test_r15_memory_that_runs_out_names_the_picture(bad_samples, tmp_path, home):
    """88 million pixels are taken, but not within 250 MB; that makes the picture no bad one that could be left out."""
    fill(tmp_path, 20)
    Image.new("L", (9400, 9400)).save(tmp_path / "cat/006.png", compress_level=1)
    said = within(250_000_000, lambda: load_folder(tmp_path, 8, bad_samples=bad_samples, bad_share=0.5), home / "told")
    assert (
        said
        == f"the memory isn't enough to read the image {tmp_path}/cat/006.png; free some, or make the image smaller"
    )
    assert not [path for path in (home / "cache").iterdir() if path.suffix != ".lock"]
    picture(6).save(tmp_path / "cat/006.png")
    assert len(load_folder(tmp_path, 8).fields["image"]) == 20


# ---- R16: decoding that never ends ---------------------------------------------------------------


@pytest.mark.parametrize("way", ["raise", "skip"])  # a disk that is gone is no bad picture
def test_r16_a_picture_that_never_comes_is_named(way, tmp_path, home, monkeypatch):
    """Once the pictures are listed, one becomes a pipe that nobody writes to: whoever opens it waits for ever."""
    fill(tmp_path, 20)
    path, build = tmp_path / "cat/006.png", caching._build
    with monkeypatch.context() as patched:
        patched.setattr(caching, "_build", lambda *given: (path.unlink(), os.mkfifo(path), build(*given)))
        patched.setattr(caching, "PATIENCE", 0.3)
        with pytest.raises(
            ZooError, match=r"cat/006\.png could not be read within 0\.3 s; see to the disk or server that it lies on"
        ):
            load_folder(tmp_path, 8, way, 1.0)
    with open(path, "wb"):  # lets the thread go
        path.unlink()
    assert not [path for path in (home / "cache").iterdir() if path.suffix != ".lock"]
    picture(6).save(path)
    assert len(load_folder(tmp_path, 8).fields["image"]) == 20


def test_r16_a_thread_that_hangs_does_not_hold_up_the_end(tmp_path):
    """In a process of its own, which ends though a thread of it waits for the pipe."""
    fill(tmp_path, 20)
    code = """
import os, sys
from zoo.data.folder import folder, cache as folder_cache
from zoo.errors import ZooError
path, build = sys.argv[1] + "/cat/006.png", folder_cache._build
folder_cache._build, folder_cache.PATIENCE = lambda *given: (os.unlink(path), os.mkfifo(path), build(*given)), 0.2
try: folder.load_folder(sys.argv[1], 8)
except ZooError as error: print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and "could not be read within" in done.stdout


def test_r16_a_shard_that_never_comes_does_not_hold_up_the_end(tmp_path):
    """Once it is indexed, the shard becomes a pipe: a thread waits for it, and neither the sentence nor the end of the
    process does.
    """
    fill(tmp_path / "pictures", 20)
    assert cli.main(["data", "shard", str(tmp_path / "pictures"), "--out", str(tmp_path / "shards")]) == 0
    code = """
import os, pathlib, sys
from zoo.data.shards import shards
from zoo.errors import ZooError
shards.PATIENCE = 0.3
image = shards.load_shards(sys.argv[1], 8).fields["image"]
assert len(image[:4]) == 4
for path in pathlib.Path(sys.argv[1]).glob("*.tar"):
    path.unlink()
    os.mkfifo(path)
try: image[:4]
except ZooError as error: print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "shards")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (
        done.returncode == 0 and "gave no picture for 0.3 s; see to the disk or server that they lie on" in done.stdout
    ), done.stderr


def test_r16_a_picture_of_a_shard_that_never_comes_does_not_hold_up_the_end(tmp_path):
    """As the first test's, while shards are written: nothing half is left of them."""
    fill(tmp_path / "pictures", 20)
    code = """
import os, sys
from zoo.data.folder import cache as folder_cache
from zoo.data.shards import writer as shard_writer
from zoo.errors import ZooError
path, write = sys.argv[1] + "/pictures/cat/006.png", shard_writer._write
shard_writer._write, folder_cache.PATIENCE = lambda *given: (os.path.isfile(path) and (os.unlink(path), os.mkfifo(path)), write(*given)), 0.3
try: shard_writer.write_shards(sys.argv[1] + "/pictures", sys.argv[1] + "/shards")
except ZooError as error: print(error)
"""  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and "cat/006.png could not be read within 0.3 s" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_r16_a_pipe_in_the_folder_is_not_waited_for(tmp_path):
    fill(tmp_path, 4)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_folder(tmp_path, 8).fields["image"]) == 4

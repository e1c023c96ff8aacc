"""Samples of shards that lack a picture: texts and sounds, and what is refused."""

import io
import json

import numpy as np
import pytest
import torch
from shards_example import png, refused, tar

from zoo.data.datasets import data_info, load_data
from zoo.data.info import Settings
from zoo.fields import Audio, Label, Text


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path_factory.mktemp("home")))


def wav(pitch: float, seconds: float = 0.1, rate: int = 8000) -> bytes:
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    soundfile.write(out, 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate), rate, format="WAV")
    return out.getvalue()


def shards(root, *samples: dict[str, bytes], per_shard: int = 4) -> str:
    for first in range(0, len(samples), per_shard):
        part = samples[first : first + per_shard]
        members = {f"{first + k:03}.{kind}": data for k, sample in enumerate(part) for kind, data in sample.items()}
        tar(root / f"{first:03}.tar", members)
    return f"shards:{root}"


def test_texts_alone(tmp_path):
    rows = [{"json": json.dumps({"text": f"text {k}", "label": k % 2}).encode()} for k in range(12)]
    name = shards(tmp_path, *rows)
    data = load_data(name, length=9)
    assert data.info.kinds == {"label": Label(("0", "1")), "text": Text(9)} and (
        data.info.size,
        data.info.channels,
    ) == (0, 0)
    assert data.info == data_info(name, Settings(length=9))
    assert data.fields["text"].take(torch.tensor([7, 0])) == ["text 7", "text 0"]
    assert sorted(torch.cat(list(data.splits.values())).tolist()) == list(range(12))


def test_sounds_with_labels_and_texts(tmp_path):
    rows = [{"wav": wav(100 * (k + 1)), "cls": b"%d" % (k % 2), "txt": b"tone"} for k in range(10)]
    name = shards(tmp_path, *rows)
    data = load_data(name)
    assert data.info.kinds == {"audio": Audio(8000, 0.1), "label": Label(("0", "1")), "text": Text()}
    values = data.fields["audio"][torch.tensor([9, 2])]
    exact = 0.5 * np.sin(2 * np.pi * np.array([[1000], [300]]) * np.arange(800) / 8000)
    assert values.dtype == torch.float32 and np.abs(values.numpy() - exact).max() < 1e-4
    other = load_data(name, rate=4000, seconds=0.2)
    assert other.fields["audio"][:].shape == (10, 800) and other.info.kinds["audio"] == Audio(4000, 0.2)
    assert other.fingerprint != data.fingerprint == load_data(name).fingerprint


def test_sounds_beside_pictures(tmp_path):
    name = shards(tmp_path, *({"png": png(k), "wav": wav(200)} for k in range(6)))
    data = load_data(name, [8, 4])
    assert data.info.fields == ("image", "audio") and data.fingerprint.endswith("00080004")
    assert data.fields["image"][:].shape == (6, 3, 8, 4) and data.fields["audio"][:].shape == (6, 800)


def test_an_unreadable_sound_gives_way(tmp_path):
    rows = [{"wav": wav(100 * (k + 1))} for k in range(12)]
    name = shards(tmp_path, *rows)
    train = data_info(name) and load_data(name).splits["train"].tolist()
    index = load_data(name).fields["audio"]
    bad, offset = train[0], int(index._offset[train[0]])
    path = index.shards[index._shard[bad]]
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    with open(path, "r+b") as file:  # without a new time, as a failing disk would
        import os

        times = os.stat(path)
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "at byte" in refused(lambda: load_data(name).fields["audio"][torch.tensor([bad])])
    replaced = load_data(name, bad_samples="replace", bad_share=0.5)
    values = replaced.fields["audio"][torch.tensor([bad, train[1]])]
    assert torch.equal(values[0], values[1]) and len(replaced.bad) == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"txt": b"a"}, {"png": None}], "has a picture, unlike those before it"),
        ([{"png": None}, {"txt": b"a"}], "has no picture, unlike those before it"),
        ([{"txt": b""}, {"txt": b""}], "no text at all"),
        ([{"txt": b"a"}, {"txt": b"a\0"}], "sample 001 .* NUL"),
        ([{"txt": b"a"}, {"txt": b"\xff"}], "001.txt .*utf-8"),
        ([{"txt": b"a", "heic": b"x"}, {"txt": b"b", "heic": b"x"}], "has no picture but 000.heic"),
    ],
)
def test_one_sentence_for(rows, said, tmp_path):
    import re

    rows = [{kind: png(0) if data is None else data for kind, data in row.items()} for row in rows]
    assert re.search(said, refused(lambda: load_data(shards(tmp_path, *rows))))


def test_sounds_of_two_rates_or_without_a_header(tmp_path):
    name = shards(tmp_path / "two", {"wav": wav(100)}, {"wav": wav(100, rate=16000)})
    message = refused(lambda: data_info(name))
    assert "8,000" in message and "16,000" in message and "data.rate" in message
    assert load_data(name, rate=8000).fields["audio"][:].shape == (2, 800)
    bad = shards(tmp_path / "bad", {"wav": wav(100)}, {"wav": b"no sound"})
    assert "001.wav" in refused(lambda: load_data(bad)) and "can't be read" in refused(lambda: load_data(bad))

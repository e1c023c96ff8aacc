"""The emoji set: decoding, texts, and that no subject is in two splits; on the real files where they are."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.datasets import load_data
from zoo.data.named import emoji
from zoo.data.sources import sources
from zoo.errors import ZooError

HOME = os.environ.get("ZOO_HOME")  # as the person who runs the tests has it


def picture(unified: str, artist: str) -> Image.Image:
    """A picture of its own for each code point sequence and artist."""
    seed = int.from_bytes(f"{unified}{artist}".encode(), "big") % 2**32
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 4), np.uint8), "RGBA")


def entry(unified: str, name: str, category: str, *tones: str, **other) -> dict:
    """As in emoji.json."""
    one = {
        "unified": unified,
        "name": name,
        "image": f"{unified.lower()}.png",
        "short_names": [name.lower().replace(" ", "_")],
        "category": category,
        "subcategory": category.lower(),
        **other,
    }
    if tones:
        one["skin_variations"] = {tone: {"image": f"{unified.lower()}-{tone.lower()}.png"} for tone in tones}
    return one


@pytest.fixture
def raw(tmp_path):
    table = [
        entry("1F468-200D-1F33E", "MAN FARMER", "People & Body", "1F3FB", "1F3FF"),
        entry("1F9D1-200D-1F33E", "FARMER", "People & Body", "1F3FB"),
        entry("1F1F3-1F1F4", "Norway Flag", "Flags", short_names=["flag-no"]),
        entry("1F1F8-1F1EF", "Svalbard Flag", "Flags", short_names=["flag-sj"]),
        *(entry(f"1F6{number:02X}", f"THING {number}", "Objects") for number in range(200)),
    ]
    (tmp_path / "emoji.json").write_text(json.dumps(table))
    for artist in emoji.ARTISTS:
        (tmp_path / artist).mkdir()
        for one in table:
            for file in [
                one["image"],
                *(other["image"] for other in one.get("skin_variations", {}).values()),
            ]:
                picture(file, artist).save(tmp_path / artist / file)
    picture("1f1f3-1f1f4.png", "google").save(tmp_path / "google/1f1f8-1f1ef.png")  # as it is: one flag for both
    return tmp_path


def test_fields_of_a_small_set(raw):
    fields, splits = emoji.read_emoji(raw, 64, raw)
    count = 2 * (3 + 2 + 202)
    assert fields["image"].shape == (count, 3, 64, 64) and fields["image"].dtype == np.uint8
    assert fields["text"][:6] == [
        "man farmer",
        "man farmer, light skin tone",
        "man farmer, dark skin tone",
        "farmer",
        "farmer, light skin tone",
        "norway flag, flag no",
    ]
    assert fields["text"][: count // 2] == fields["text"][count // 2 :]
    assert fields["label"][:8].tolist() == [2, 2, 2, 2, 2, 0, 0, 1] and fields["artist"].tolist() == [0] * (
        count // 2
    ) + [1] * (count // 2)
    assert fields["emoji"].tolist() == 2 * list(range(count // 2))
    assert sorted(np.concatenate(list(splits.values()))) == list(range(count))
    assert len(set(np.isin(np.r_[0:5, count // 2 : count // 2 + 5], splits["train"]))) == 1  # farmers stay together
    assert len(set(np.isin([5, 6, count // 2 + 5, count // 2 + 6], splits["train"]))) == 1  # and so do equal flags
    again = emoji.read_emoji(raw, 64, raw)[1]
    assert all(np.array_equal(splits[name], again[name]) for name in splits)


@pytest.mark.parametrize(
    "unified, subject",
    [
        ("1F44B", "1F44B"),
        ("1F468-200D-1F33E", "1F9D1-1F33E"),
        ("1F469-200D-1F33E", "1F9D1-1F33E"),
        ("1F3FB", "1F3FB"),
        ("1F3C3-200D-2640-FE0F-200D-27A1-FE0F", "1F3C3"),
        ("0023-FE0F-20E3", "0023-20E3"),
        ("2642-FE0F", "2642-FE0F"),
        ("1F468-200D-1F9B0", "1F9D1"),
    ],
)
def test_subjects(unified, subject):
    assert emoji.subject_of(unified) == subject


def test_chains_of_equal_pictures_make_one_subject():
    images = np.array([1, 2, 2, 3, 3, 4], np.uint8)[:, None]
    assert emoji.join_subjects(["d", "c", "b", "b", "a", "e"], images) == ["d", "a", "a", "a", "a", "e"]


def test_splits_are_the_ones_of_version_1():
    known = {
        "1F44B": "train",
        "1F9D1-1F33E": "train",
        "1F600": "train",
        "1F355": "train",
        "2764": "test",
        "1F1E6-1F1E8": "train",
        "1F436": "train",
        "1F680": "train",
        "26BD": "train",
        "1F4A1": "test",
        "1F34E": "train",
        "1F401": "validation",
    }
    assert {subject: emoji.split_of(subject) for subject in known} == known


def test_shares():
    shares = np.unique([emoji.split_of(str(number)) for number in range(20_000)], return_counts=True)[1] / 20_000
    assert np.allclose(shares, [0.15, 0.7, 0.15], atol=0.01)  # test, train, validation


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_compositing_on_white(tmp_path, mode):
    image = picture("x", "y")
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, 16:32], alpha[:, 32:] = 128, 255
    image.putalpha(Image.fromarray(alpha))
    if mode == "P":
        image = image.quantize(64)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "x.png")
    got = emoji.decode(tmp_path / "x.png").astype(float)
    exact = np.asarray(image.convert("RGBA")).astype(float).transpose(2, 0, 1)
    wanted = exact[:3] * exact[3:] / 255 + 255 - exact[3:]
    assert got.shape == (3, 64, 64) and np.abs(got - wanted).max() <= 0.5 + 1e-6
    if mode in ("RGBA", "LA"):
        assert (got[:, :, :16] == 255).all()


def test_damage_is_named(raw):
    (raw / "google/1f600.png").write_bytes(b"no picture")
    with pytest.raises(ZooError, match="google/1f600.png can't be decoded"):
        emoji.decode(raw / "google/1f600.png")
    Image.new("RGBA", (32, 32)).save(raw / "google/1f600.png")
    with pytest.raises(ZooError, match="32x32"):
        emoji.decode(raw / "google/1f600.png")
    for table in ("{", "[3]", '[{"category": 1}]'):
        (raw / "emoji.json").write_text(table)
        with pytest.raises(ZooError, match="emoji.json"):
            emoji.list_emoji(raw / "emoji.json")


def test_the_real_set(monkeypatch):
    if HOME is not None:
        monkeypatch.setenv("ZOO_HOME", HOME)
    if sources.recorded_digest(sources.SOURCES["emoji"]) is None:
        pytest.skip("the emoji set isn't in the data home; `zoo data get emoji` brings it")
    data = load_data("emoji", download=False)
    image, texts = data.fields["image"], data.fields["text"]
    assert image.shape == (7572, 3, 64, 64) and len(texts) == 7572 and len(set(texts)) > 3700
    assert {name: len(index) for name, index in data.splits.items()} == data.info.splits
    where = torch.full((7572,), -1)
    for number, index in enumerate(data.splits.values()):
        assert (where[index] == -1).all()
        where[index] = number
        assert set(data.fields["label"][index].tolist()) == set(range(10))
    assert torch.equal(where[:3786], where[3786:])  # an emoji and its other artist
    assert torch.equal(data.fields["label"][:3786], data.fields["label"][3786:])
    table = emoji.list_emoji(sources.folder_of("emoji") / "raw" / "emoji.json")
    for key in ("subject", None):  # skin tones and genders; equal pictures
        groups: dict = {}
        for row in range(7572):
            name = table[row % 3786][key] if key else image[row].numpy().tobytes()
            groups.setdefault(name, set()).add(int(where[row]))
        assert all(len(splits) == 1 for splits in groups.values())
    assert (image[:, :, 0, 0] == 255).all(1).float().mean() > 0.6  # most corners are bare: white, not black
    by_name = {text: row for row, text in enumerate(texts[:3786])}
    assert data.info.classes[data.fields["label"][by_name["tulip"]]] == "Animals & Nature"

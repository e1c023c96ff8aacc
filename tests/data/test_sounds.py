"""Sounds of people's own: one rate and one length, a cache, labels, companions; and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from zoo.data.datasets import data_info, load_data
from zoo.data.info import Settings
from zoo.errors import ZooError
from zoo.fields import Audio, Label, Text

soundfile = pytest.importorskip("soundfile")
RATE = 8000


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ZOO_HOME", str(place))
    return place


def tone(seconds: float, pitch: float = 440.0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)
    return wave if channels == 1 else np.stack([wave * 1.5, wave * 0.5], 1)


def write(root: Path, name: str, values: np.ndarray, rate: int = RATE, **more) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, values, rate, **more)
    return path


def some(root: Path, count: int = 6) -> str:
    for k in range(count):
        write(root, f"{'ab'[k % 2]}/{k}.wav", tone(0.1 * (k + 1), 200 * (k + 1)))
    return f"folder:{root}"


def arrays(home: Path) -> list[Path]:
    return sorted(home.rglob("*.npy"))


# ---- what is read ------------------------------------------------------------------------------------------
def test_sounds_have_the_median_length_and_their_classes(tmp_path, home):
    name = some(tmp_path)
    data = load_data(name)
    assert data.info.kinds == {"audio": Audio(RATE, 0.35), "label": Label(("a", "b"))}
    assert data.info == data_info(name) and len(arrays(home)) == 1
    values = data.fields["audio"][:]
    assert values.shape == (6, 2800) and values.dtype == torch.float32
    long, short = values[data.fields["label"].tolist().index(1) + 2], values[0]  # b/5.wav and a/0.wav
    assert np.abs(long.numpy() - tone(0.35, 1200)).max() < 1e-4  # cut at its end
    assert np.abs(short[:800].numpy() - tone(0.1, 200)).max() < 1e-4 and (short[800:] == 0).all()  # padded
    batch = next(zoo.create_data(name, 3).batches("train"))
    assert batch["audio"].shape == (3, 2800) and torch.equal(batch["audio"], values[batch["index"]])
    again = load_data(name)
    assert again.fingerprint == data.fingerprint and len(arrays(home)) == 1


def test_formats_and_channels(tmp_path):
    write(tmp_path, "a.wav", tone(0.2, channels=2), subtype="FLOAT")
    write(tmp_path, "b.flac", tone(0.2), subtype="PCM_24")
    write(tmp_path, "c.ogg", tone(0.2))
    values = load_data(f"folder:{tmp_path}").fields["audio"][:]
    exact = torch.from_numpy(tone(0.2)).float()
    assert (values[:2] - exact).abs().max() < 1e-4 and (values[2] - exact).abs().mean() < 0.02


def test_seconds_and_rate_are_what_is_asked_for(tmp_path, home):
    name = some(tmp_path)
    first = load_data(name)
    data = load_data(name, rate=4000, seconds=0.05)
    assert data.info.kinds["audio"] == Audio(4000, 0.05) and data.fields["audio"].shape == (6, 200)
    assert data.info == data_info(name, Settings(rate=4000, seconds=0.05))
    assert data.fingerprint != first.fingerprint
    assert np.abs(data.fields["audio"][0].numpy()[20:180] - tone(0.05, 200, 4000)[20:180]).max() < 0.01
    assert load_data(name).fingerprint == first.fingerprint  # both are kept


def test_texts_of_the_same_stem_are_transcripts_and_covers_do_not_count(tmp_path):
    from PIL import Image

    name = some(tmp_path, 4)
    Image.new("RGB", (8, 8)).save(tmp_path / "cover.png")
    for path in tmp_path.rglob("*.wav"):
        path.with_suffix(".txt").write_text(f"tone {path.stem}")
    data = load_data(name, length=7)
    assert data.info.kinds["text"] == Text(7) and data.info.fields == ("audio", "label", "text")
    assert data.fields["text"] == ["tone 0", "tone 2", "tone 1", "tone 3"]


def test_images_with_sounds_of_their_stems(tmp_path):
    from PIL import Image

    name = some(tmp_path, 4)
    for path in sorted(tmp_path.rglob("*.wav")):
        Image.new("RGB", (8, 8), (int(path.stem) * 50, 0, 0)).save(path.with_suffix(".png"))
    data = load_data(name, 8)
    assert data.info.fields == ("image", "label", "audio") and data.info == data_info(name, Settings(size=8))
    assert torch.equal(data.fields["audio"][0][:800], load_data(name, 8).fields["audio"][0][:800])
    (tmp_path / "a/0.wav").unlink()
    assert load_data(name, 8).info.fields == ("image", "label")
    assert "a/0.png has none" in data_info(name).lacks["audio"]


# ---- what is refused ---------------------------------------------------------------------------------------
def test_sounds_of_several_rates_are_never_resampled_silently(tmp_path, home):
    name = some(tmp_path)
    write(tmp_path, "a/other.wav", tone(0.1, rate=16000), 16000)
    for read in (data_info, load_data):
        with pytest.raises(ZooError, match=r"a/0\.wav 8,000 and a/other\.wav 16,000 .*data\.rate"):
            read(name)
    assert not arrays(home)
    data = load_data(name, rate=RATE, seconds=0.1)
    other = data.fields["audio"][3]
    assert np.abs(other.numpy()[40:760] - tone(0.1)[40:760]).max() < 0.01


BROKEN = {
    "text": b"no sound at all, but some text",
    "empty": b"",
    "cut": None,
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_unreadable_sound_is_named_left_out_or_replaced(case, tmp_path, home):
    name = some(tmp_path)
    path = tmp_path / "a" / "4.wav"
    path.write_bytes(path.read_bytes()[:30] if BROKEN[case] is None else BROKEN[case])
    with pytest.raises(ZooError, match=r"a/4\.wav can't be read \(.+\); remove it or mend it") as error:
        load_data(name)
    assert "\n" not in str(error.value) and not arrays(home)
    skipped = load_data(name, bad_samples="skip", bad_share=0.2)
    assert len(skipped.fields["audio"]) == 5 and skipped.fields["label"].tolist() == [0, 0, 1, 1, 1]
    assert skipped.bad[0]["path"] == "a/4.wav"
    with pytest.raises(ZooError, match="1 of the 6 sounds.*bad_share 0.1"):
        load_data(name, bad_samples="skip", bad_share=0.1)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    some(tmp_path, 2)
    write(tmp_path, "a/nan.wav", np.full(800, np.nan), subtype="FLOAT")
    with pytest.raises(ZooError, match=r"a/nan\.wav can't be read \(.*finite"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    "options", [{"rate": 1}, {"rate": 8000.0}, {"seconds": 0}, {"seconds": 1e9}, {"seconds": True}]
)
def test_settings_that_are_none(options, tmp_path, home):
    (key, value), name = next(iter(options.items())), some(tmp_path)
    with pytest.raises(ZooError, match=rf"^data\.{key} is ") as error:
        load_data(name, **{key: value})
    assert repr(value) in str(error.value) and not arrays(home)


def test_without_soundfile_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    name = some(tmp_path, 2)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ZooError, match=r"pretext-zoo\[audio\]"):
        load_data(name)

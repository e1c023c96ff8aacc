"""An audio backbone is a timm model of one channel, which timm opens alone, on log-mel images of sound."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from zoo.backbones import create_backbone
from zoo.backbones.create import check_forward
from zoo.backbones.log_mel import LogMel, mel_filters
from zoo.checkpoint.towers import read_tower, tower_files
from zoo.errors import ZooError

VIT = dict(model="vit_tiny_patch16_224", patch_size=4, depth=2, embed_dim=32, num_heads=2, mels=32)
MODELS = [dict(model="test_resnet", mels=32), VIT, dict(model="test_convnext", mels=40)]


def _made(seconds: float = 0.4, **keywords):
    torch.manual_seed(0)
    return create_backbone("audio", rate=8000, seconds=seconds, **keywords).eval()


def _sounds(count: int = 3, samples: int = 3200) -> torch.Tensor:
    return torch.rand(count, samples, generator=torch.Generator().manual_seed(0)) * 2 - 1


# ---- the front end -------------------------------------------------------------------------------


def _log_mel(sound: np.ndarray, rate: int, mels: int, window: int, hop: int, points: int) -> np.ndarray:
    """The same image written anew, a column at a time, by numpy's Fourier transform and interpolated triangles."""
    shape = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), mels + 2) / 2595) - 1)
    frequencies = np.arange(points // 2 + 1) * rate / points
    image = np.zeros((mels, len(sound) // hop))
    for column in range(image.shape[1]):
        middle = column * hop + hop // 2
        places = np.arange(window) + middle - window // 2
        inside = (places >= 0) & (places < len(sound))
        part = np.where(inside, sound[places.clip(0, len(sound) - 1)], 0) * shape
        power = np.abs(np.fft.rfft(part, points)) ** 2 * 4 / (points * (shape**2).sum())
        for band in range(mels):
            weight = np.interp(frequencies, edges[band : band + 3], [0, 1, 0], left=0, right=0)
            image[mels - 1 - band, column] = 10 * np.log10(max((weight * power).sum(), 1e-8)) / 80 + 1
    return image


@pytest.mark.parametrize("window, hop, mels", [(200, 80, 20), (256, 100, 32), (160, 160, 40)])
def test_the_image_is_that_of_an_independent_formula(window, hop, mels):
    front = LogMel(8000, mels, window, hop, 0.0, 4000.0, 80.0)
    sound = _sounds(2)
    image = front(sound)
    assert image.shape == (2, 1, mels, 3200 // hop)
    for row in range(2):
        expected = _log_mel(sound[row].double().numpy(), 8000, mels, window, hop, front.points)
        np.testing.assert_allclose(image[row, 0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("rate, points, mels, fmin, fmax", [(16000, 512, 64, 0, 8000), (8000, 1024, 40, 60, 3500)])
def test_filters_are_those_of_transformers(rate, points, mels, fmin, fmax):
    audio = pytest.importorskip("transformers.audio_utils")
    expected = audio.mel_filter_bank(points // 2 + 1, mels, fmin, fmax, rate, norm=None, mel_scale="htk")
    np.testing.assert_allclose(mel_filters(mels, points, rate, fmin, fmax).numpy(), expected.T, atol=1e-5)


@pytest.mark.parametrize("hertz", [200, 1000, 3000])
def test_a_full_scale_sine_is_1_in_its_band_alone(hertz):
    front = LogMel(8000, 24, 200, 80, 0.0, 4000.0, 80.0)
    image = front(torch.sin(2 * torch.pi * hertz * torch.arange(8000) / 8000).view(1, -1))[0, 0]
    middle = image[:, 50]
    centres = 700 * (10 ** (torch.linspace(0, 2595 * np.log10(1 + 4000 / 700), 26)[1:-1] / 2595) - 1)
    assert middle.argmax() == 23 - (centres - hertz).abs().argmin()
    assert 0.95 < middle.max() <= 1.001 and middle.median() < 0.6
    louder, softer = front(torch.ones(1, 800)), front(torch.zeros(1, 800))
    assert louder.isfinite().all() and torch.equal(softer, torch.zeros_like(softer))


def test_ten_times_softer_is_20_decibels_less():
    front, sound = LogMel(8000, 24, 200, 80, 0.0, 4000.0, 100.0), _sounds()
    torch.testing.assert_close(front(sound) - front(sound / 10), torch.full((3, 1, 24, 40), 0.2), atol=1e-4, rtol=0)


def test_narrow_bands_lengthen_the_transform_until_each_holds_a_frequency():
    few, many = LogMel(16000, 32, 400, 160, 0.0, 8000.0, 80.0), LogMel(16000, 128, 400, 160, 0.0, 8000.0, 80.0)
    assert few.points == 512 < many.points and (many.filters.sum(1) > 0).all()
    with pytest.raises(ZooError, match="backbone.mels is 1024"):
        LogMel(16000, 1024, 400, 160, 0.0, 8000.0, 80.0)


# ---- the backbone --------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", MODELS)
def test_its_contract(keywords):
    backbone = _made(**keywords)
    x = backbone.prepare(_sounds())
    assert x.shape == (3, 1, keywords["mels"], 40) and x.dtype == torch.float32
    with torch.no_grad():
        assert backbone.pool(x).shape == (3, backbone.num_features)
    assert backbone.reads == backbone.field == "audio"
    assert backbone.spec() == {"name": "audio", **keywords, "rate": 8000, "seconds": 0.4}
    again = create_backbone(**backbone.spec())
    assert again.spec() == backbone.spec()
    check_forward(again)
    assert not [key for key in backbone.state_dict() if not key.startswith("model.")]


def test_a_vit_reads_patches_of_a_rectangle():
    backbone = _made(**VIT)
    assert backbone.grid == (8, 10) and len(backbone.blocks) == 2
    x = backbone.prepare(_sounds())
    keep = torch.rand(3, 80).argsort(1)[:, :12]
    with torch.no_grad():
        assert backbone.tokens(x).shape == (3, backbone.num_prefix_tokens + 80, 32)
        assert backbone.tokens(x, keep).shape == (3, backbone.num_prefix_tokens + 12, 32)


@pytest.mark.parametrize("keywords", MODELS)
def test_timm_opens_its_files_alone_and_finds_the_same_bits(keywords, tmp_path):
    backbone = _made(**keywords)
    for name, data in tower_files(backbone, "Apache-2.0").items():
        (tmp_path / name).write_bytes(data)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert model.pretrained_cfg["input_size"] == (1, keywords["mels"], 40)
    x = backbone.prepare(_sounds())
    mean, std = model.pretrained_cfg["mean"][0], model.pretrained_cfg["std"][0]
    with torch.no_grad():
        assert torch.equal(model((x - mean) / std), backbone.pool(x))


@pytest.mark.parametrize("keywords", MODELS)
def test_what_is_written_is_read_again_to_the_bit(keywords):
    backbone = _made(**keywords)
    files = tower_files(backbone, None)
    again = read_tower("audio", backbone.spec(), files.__getitem__)
    assert tower_files(again, None) == files and again.spec() == backbone.spec()
    with torch.no_grad():
        assert torch.equal(again.pool(again.prepare(_sounds())), backbone.pool(backbone.prepare(_sounds())))


def test_files_of_another_network_are_refused():
    backbone, other = _made(mels=32, model="test_resnet"), _made(**VIT)
    for file in ("config.json", "model.safetensors"):
        files = tower_files(backbone, None) | {file: tower_files(other, None)[file]}
        with pytest.raises(ZooError, match=file):
            read_tower("audio", backbone.spec(), files.__getitem__)
    with pytest.raises(ZooError, match="reads image, and audio doesn't"):
        read_tower("image", backbone.spec(), tower_files(backbone, None).__getitem__)


def test_sounds_of_another_rate_are_refused():
    backbone = _made(mels=32, model="test_resnet")
    with pytest.raises(ZooError, match=r"6,400 samples.*3,200: 0.4 s at 8,000 a second; set data.rate"):
        backbone.prepare(_sounds(samples=6400))
    backbone.require_rate(8000, "speech")
    with pytest.raises(ZooError, match="speech has 16,000 .*8,000; set data.rate to 8000"):
        backbone.require_rate(16000, "speech")
    for odd in (_sounds().unsqueeze(1), torch.zeros(2, 3200, dtype=torch.int16)):
        with pytest.raises(ZooError, match=r"floats \(B, S\)"):
            backbone.prepare(odd)


@pytest.mark.parametrize(
    "keywords, said",
    [
        ({"model": "test_resnt"}, "'test_resnt' is not a backbone; did you mean test_resnet"),
        ({"model": "bert"}, "'bert' is not a backbone"),
        ({"in_chans": 3}, "backbone.in_chans can't be set"),
        ({"size": 32}, "rate and seconds"),
        ({"mels": 0}, "backbone.mels is 0; .*from 1"),
        ({"mels": "64"}, "backbone.mels is '64'; it has to be a whole number, such as 64"),
        ({"mels": 1000}, "backbone.mels is 1000, too many bands .*backbone.window"),
        ({"rate": 0}, "backbone.rate is 0; .*from 1,000"),
        ({"rate": 16000.0}, "backbone.rate is '16000.0'; .*whole number"),
        ({"seconds": float("nan")}, "backbone.seconds is nan"),
        ({"seconds": 3000}, "backbone.seconds is 3000 s .*at most"),
        ({"seconds": 0.001}, "backbone.hop"),
        ({"hop": 0.0001, "seconds": 5.0}, "backbone.hop"),
        ({"window": 0.0001}, "backbone.window"),
        ({"window": 9.0}, "backbone.window is 9.0 s .*at most"),
        ({"fmin": 5000.0}, "backbone.fmin is 5000 and backbone.fmax 4000"),
        ({"fmax": 5000.0}, "backbone.fmax 5000 Hz.*4000"),
        ({"depht": 3}, "backbone.depht"),
        (
            VIT | {"patch_size": 16},
            r"16 x 16.*32 bands x 40 columns; set backbone.mels to 32 and backbone.hop to 0.0125",
        ),
    ],
)
def test_mistakes_are_told_in_a_sentence(keywords, said):
    with pytest.raises(ZooError, match=said):
        create_backbone("audio", **{"model": "test_resnet", "rate": 8000, "seconds": 0.4} | keywords)


def test_the_hop_that_a_refusal_proposes_is_taken():
    backbone = _made(**VIT | {"patch_size": 16, "hop": 0.0125})
    assert backbone.grid == (2, 2)

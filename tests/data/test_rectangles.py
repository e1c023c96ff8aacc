"""Images that aren't square: resized to cover, centre crop, whatever they are read from."""

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.checkpoint.transform import Transform
from zoo.data.datasets import load_data
from zoo.data.folder.folder import load_folder
from zoo.data.media.decode import covering, decode
from zoo.data.media.resize import resize
from zoo.data.shards.shards import load_shards
from zoo.data.shards.writer import write_shards
from zoo.errors import ZooError
from zoo.fields import Image as ImageKind


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path_factory.mktemp("home")))


def stripes(width: int, height: int) -> Image.Image:
    """Red in the middle half of the width, blue beside it; the top half brighter."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 2] = 200
    pixels[:, width // 4 : 3 * width // 4] = (200, 0, 0)
    pixels[: height // 2] += 50
    return Image.fromarray(pixels)


def test_a_tall_rectangle_is_the_centre_of_a_wide_image():
    small = np.asarray(covering(stripes(64, 32), (32, 8)))
    assert small.shape == (32, 8, 3)
    assert (small[..., 0] >= 200).all() and (small[..., 2] <= 50).all()  # the red middle alone
    assert small[2, 4].tolist() == [250, 50, 50] and small[29, 4].tolist() == [200, 0, 0]


def test_covering_loses_as_little_as_possible():
    wide, tall = (np.asarray(covering(stripes(64, 64), shape)) for shape in ((16, 32), (32, 16)))
    assert wide.shape == (16, 32, 3) and (wide[8, 0] != wide[8, 16]).any()  # full width: blue at the edge
    assert tall.shape == (32, 16, 3) and tall[0, 8, 1] == 50 and tall[31, 8, 1] == 0  # full height


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_turned_image_is_covered_after_turning(tmp_path, kind):
    upright = stripes(640, 320)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(tmp_path / f"turned.{kind}", exif=exif, **({"quality": 98} if kind == "jpg" else {}))
    upright.save(tmp_path / f"upright.{kind}", **({"quality": 98} if kind == "jpg" else {}))
    one, other = (decode(tmp_path / f"{name}.{kind}", (16, 48))[0] for name in ("turned", "upright"))
    assert one.shape == (3, 16, 48)
    assert np.abs(one.astype(int) - other).mean() < 4


def test_tensors_are_resized_alike():
    images = torch.arange(8).repeat(4, 1)[None, None].to(torch.uint8) * 30
    assert resize(images, (4, 2)).shape == (1, 1, 4, 2)
    assert resize(images, (4, 2)).flatten().tolist() == [90, 120] * 4
    assert resize(images, (4, 8)) is images


def test_named_sets_at_a_rectangle_are_kept_apart_from_squares():
    square, wide = load_data("digits", 16), load_data("digits", [8, 16])
    assert wide.fields["image"].shape[1:] == (1, 8, 16)
    assert wide.info.size == (8, 16) and wide.info.kinds["image"] == ImageKind(1, 8, 16)
    assert wide.fingerprint not in (square.fingerprint, load_data("digits", [16, 8]).fingerprint)
    assert load_data("digits", [16, 16]).fingerprint == square.fingerprint


def test_folders_and_shards_agree(tmp_path):
    for k in range(6):
        path = tmp_path / "pictures" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        stripes(20 + k, 30).save(path)
    folder = load_folder(tmp_path / "pictures", [24, 8])
    write_shards(tmp_path / "pictures", tmp_path / "shards")
    shards = load_shards(tmp_path / "shards", [24, 8])
    assert folder.fields["image"].shape == shards.fields["image"].shape == (6, 3, 24, 8)
    assert folder.info.size == shards.info.size == (24, 8)
    assert sorted(folder.fields["image"].sum((1, 2, 3)).tolist()) == sorted(
        shards.fields["image"][:].sum((1, 2, 3)).tolist()
    )
    assert load_folder(tmp_path / "pictures", [8, 24]).fingerprint != folder.fingerprint
    prints = {load_shards(tmp_path / "shards", size).fingerprint for size in ([24, 8], [8, 24], 24, 8, [8, 8])}
    assert len(prints) == 4


def test_create_data_takes_a_rectangle_and_refuses_what_is_none():
    data = zoo.create_data("digits", 32, size=[8, 16])
    assert next(data.batches("test"))["image"].shape == (32, 1, 8, 16)
    for size in ([8], [8, 0], "8x16"):
        with pytest.raises(ZooError, match="data.size") as error:
            zoo.create_data("digits", size=size)
        assert repr(size) in str(error.value)


def test_a_transform_of_a_checkpoint_covers_a_rectangle():
    out = Transform((32, 8), 3, (0.0,) * 3, (1.0,) * 3)(stripes(64, 32))
    assert out.shape == (3, 32, 8) and out[0].min() > 0.7

"""One image file: every format and mode comes out as the picture that people see, or is refused by name."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data.media import decode as decoding
from zoo.errors import ZooError

RED, BLUE = (200, 40, 30), (20, 60, 210)


def halves(width=80, height=60, left=RED, right=BLUE) -> Image.Image:
    image = Image.new("RGB", (width, height), right)
    image.paste(left, (0, 0, width // 2, height))
    return image


def quarters() -> Image.Image:
    """Four colours, so that no turn or mirroring looks like another; not square."""
    image = Image.new("RGB", (96, 64))
    for colour, box in (
        (RED, (0, 0, 48, 32)),
        (BLUE, (48, 0, 96, 32)),
        ((10, 200, 10), (0, 32, 48, 64)),
        ((240, 230, 20), (48, 32, 96, 64)),
    ):
        image.paste(colour, box)
    return image


@pytest.mark.parametrize("value", [-9999.0, 70000.0])
def test_a_picture_of_one_value_beyond_the_usual_range_is_black(tmp_path, value):
    Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / "a.tiff")
    assert read(tmp_path / "a.tiff").max() == 0


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """An RGB file written by hand, for what Pillow doesn't write."""
    parts = [
        (b"IHDR", struct.pack(">2I5B", width, height, bits, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def read(path: Path, size: int = 16) -> np.ndarray:
    """One file through `decode`, (size, size, 3)."""
    result = decoding.decode(path, size)
    assert not isinstance(result, ZooError), result
    pixels, _ = result
    assert pixels.shape == (3, size, size) and pixels.dtype == np.uint8
    return pixels.transpose(1, 2, 0).astype(int)


@pytest.mark.parametrize("kind", "png jpg JPEG bmp gif webp tif TIFF ppm tga ico jp2 pcx qoi sgi avif".split())
def test_formats(tmp_path, kind):
    Image.init()
    if Image.registered_extensions()[f".{kind.lower()}"] not in Image.SAVE:
        pytest.skip(f"this Pillow was built without {kind}")
    path = tmp_path / f"a.{kind}"
    options = {"sizes": [(64, 64)]} if kind == "ico" else {}
    halves(64, 64).save(path, **options)
    pixels = read(path)
    assert np.abs(pixels[:, :7] - RED).max() < 14 and np.abs(pixels[:, 9:] - BLUE).max() < 14


def test_every_extension_is_of_a_format_we_open():
    Image.init()
    assert {Image.registered_extensions()[kind] for kind in decoding.EXTENSIONS} - {"MPO"} <= set(decoding.FORMATS)


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, kind, orientation):
    turn = Image.Transpose
    back = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    stored = quarters().transpose(back[orientation]) if orientation > 1 else quarters()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{kind}", exif=exif.tobytes(), **({"quality": 95} if kind in ("jpg", "webp") else {}))
    quarters().save(tmp_path / "b.png")
    inner = np.r_[1:7, 9:15]  # off the edges between colours, where lossy formats ring
    turned, upright = read(tmp_path / f"a.{kind}")[inner][:, inner], read(tmp_path / "b.png")[inner][:, inner]
    assert np.abs(turned - upright).max() < 12


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_overlooked(tmp_path):
    halves().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff rubbish")
    assert np.abs(read(tmp_path / "a.jpg")[:, :6] - RED).max() < 14


def test_alpha_is_laid_on_white(tmp_path):
    image = halves().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 40, 60))  # clear black, not white, below
    image.save(tmp_path / "a.png")
    Image.new("RGBA", (20, 20), (0, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("LA", (20, 20), (0, 64)).save(tmp_path / "la.png")
    pixels = read(tmp_path / "a.png")
    assert (pixels[:, :7] == 255).all() and np.abs(pixels[:, 10:] - BLUE).max() <= 1
    assert np.abs(read(tmp_path / "half.png") - 127).max() <= 1 and np.abs(read(tmp_path / "la.png") - 191).max() <= 1


def test_clear_pixels_do_not_bleed_into_their_neighbours(tmp_path):
    image = Image.new("RGBA", (64, 64), (0, 255, 0, 0))  # clear green around opaque red
    image.paste((255, 0, 0, 255), (16, 16, 48, 48))
    image.save(tmp_path / "a.png")
    pixels = read(tmp_path / "a.png", 8)
    assert (pixels[..., 0] >= 254).all() and np.abs(pixels[..., 1] - pixels[..., 2]).max() <= 1


def test_palette_with_and_without_transparency(tmp_path):
    palette = halves().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    palette.save(tmp_path / "a.png")
    assert np.abs(read(tmp_path / "a.png")[:, :7] - RED).max() < 6
    clear = palette.getpixel((0, 0))
    palette.save(tmp_path / "b.png", transparency=clear)
    palette.save(tmp_path / "b.gif", transparency=clear)
    for name in ("b.png", "b.gif"):
        pixels = read(tmp_path / name)
        assert (pixels[:, :7] == 255).all() and np.abs(pixels[:, 9:] - BLUE).max() < 6


def test_grey_and_one_bit_become_three_equal_channels(tmp_path):
    Image.new("L", (30, 20), 77).save(tmp_path / "a.png")
    one = Image.new("1", (32, 32), 0)
    one.paste(1, (0, 0, 16, 32))
    one.save(tmp_path / "b.png")
    assert (read(tmp_path / "a.png") == 77).all()
    pixels = read(tmp_path / "b.png")
    assert (pixels[:, :7] == 255).all() and (pixels[:, 9:] == 0).all()


def test_cmyk(tmp_path):
    halves().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    halves().convert("CMYK").save(tmp_path / "a.tif")
    for name in ("a.jpg", "a.tif"):
        pixels = read(tmp_path / name)
        assert np.abs(pixels[:, :6] - RED).max() < 14 and np.abs(pixels[:, 10:] - BLUE).max() < 14


@pytest.mark.parametrize("kind", ["png", "tif", "pgm", "big-endian tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, kind):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    path = tmp_path / f"a.{kind.split()[-1]}"
    if kind == "big-endian tif":
        Image.frombytes("I;16B", (16, 16), values.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(values).save(path)
    assert (read(path) == np.arange(256).reshape(16, 16, 1)).all()


def test_sixteen_bits_in_colour(tmp_path):
    rows = (b"\0" + struct.pack(">3H", 200 * 257, 40 * 257, 30 * 257) * 8) * 8
    (tmp_path / "a.png").write_bytes(png(8, 8, 16, rows))
    assert np.abs(read(tmp_path / "a.png") - RED).max() <= 1


def test_floats(tmp_path):
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for name, values in (("unit", ramp), ("bytes", ramp * 255), ("free", ramp * 4000 - 1000)):
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        assert np.abs(read(tmp_path / f"{name}.tif") - np.arange(256).reshape(16, 16, 1)).max() <= 1
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    assert "finite" in str(decoding.decode(tmp_path / "nan.tif", 16))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, BLUE)]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        frames[0].save(
            tmp_path / name,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if name == "a.webp" else {}),
        )
        assert np.abs(read(tmp_path / name) - RED).max() <= 3, name


def test_central_square_of_wide_and_tall(tmp_path):
    wide = Image.new("RGB", (90, 30), BLUE)
    wide.paste(RED, (30, 0, 60, 30))
    wide.save(tmp_path / "wide.png")
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        pixels = read(tmp_path / name)
        assert (pixels[2:-2, 2:-2] == RED).all() and np.abs(
            pixels - RED
        ).max() < 20  # at the rim the filter sees what is beyond


def test_resizing_is_antialiased(tmp_path):
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    assert np.abs(read(tmp_path / "a.png") - 127).max() <= 2
    smooth = np.sin(np.indices((300, 400)).sum(0) / 40)
    photo = Image.fromarray((127 + 100 * smooth).astype(np.uint8)).convert("RGB")
    photo.save(tmp_path / "b.jpg", quality=98)
    whole = np.asarray(photo.resize((64, 48), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(read(tmp_path / "b.jpg", 48) - whole[:, 8:56]).max() <= 3


def test_extreme_shapes(tmp_path):
    for width, height in ((1, 1), (1, 20_000), (20_000, 1), (3, 2)):
        Image.new("RGB", (width, height), RED).save(tmp_path / "a.png")
        assert (read(tmp_path / "a.png") == RED).all()


# ---- what can't be read ------------------------------------------------------------------------------------
def bad_content(kind: str, good: bytes) -> bytes:
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    return {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "header only": good[:20],
        "flipped": bytes(flipped),
        "not an image": b"hello, world\n" * 30,
        "bomb": png(20_000, 20_000, 8, bytes(100)),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "truncated", "header only", "flipped", "not an image", "bomb", "postscript"])
def test_unreadable_files_become_a_sentence(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(bad_content(kind, (tmp_path / "good.png").read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, about bombs
        result = decoding.decode(tmp_path / "bad.png", 16)
    assert isinstance(result, ZooError) and "\n" not in str(result)
    reason = {
        "empty": "the file is empty",
        "bomb": "pixels",
        "not an image": "isn't an image",
        "postscript": "isn't an image",
    }
    assert reason.get(kind, "(") in str(result) and str(result).endswith("); remove it or mend it")
    assert str(result).startswith(f"the image {tmp_path}/bad.png can't be read (")


@pytest.mark.parametrize("kind", ["jpg", "gif", "webp", "bmp", "tif", "ppm", "jp2", "qoi", "tga", "avif"])
def test_truncated_files_of_other_formats(tmp_path, kind):
    Image.init()
    if Image.registered_extensions()[f".{kind}"] not in Image.SAVE:
        pytest.skip(f"this Pillow was built without {kind}")
    path = tmp_path / f"a.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"a.{kind} can't be read" in str(decoding.decode(path, 16))

"""One image file -> one small RGB image of a fixed size; or a sentence on what is wrong with the file."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import ZooError
from zoo.fields import ImageSize, height_width

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

# Named one by one: Pillow also opens EPS, which starts Ghostscript, and films and grids of numbers.
EXTENSIONS = frozenset(
    (
        ".png .apng .jpg .jpeg .jpe .jfif .mpo .jp2 .j2k .jpx .jpf .jpc .bmp .dib .gif .webp "
        ".avif .tif .tiff .ppm .pgm .pbm .pnm .tga .ico .qoi .pcx .sgi .psd"
    ).split()
)
FORMATS = tuple("PNG JPEG JPEG2000 BMP DIB GIF WEBP AVIF TIFF PPM TGA ICO QOI PCX SGI PSD".split())
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
MOST_PIXELS = 89_478_485  # above this Pillow warns of a decompression bomb; as RGBA it is 358 MB


class Unreadable(ZooError):
    """A file that can't be read, and the reason alone."""

    def __init__(self, path: Path | str, reason: str, noun: str = "image"):
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        super().__init__(f"the {noun} {shown} can't be read ({reason}); remove it or mend it")
        self.reason = reason


def decode(path: Path, size: ImageSize) -> tuple[np.ndarray, str] | Unreadable:
    """The image in `path` as uint8 (3, height, width), and the sha256 of the file.

    An Unreadable is returned, not raised, if it can't be read: whoever reads a whole folder wants to name them all.
    Raises ZooError where the memory isn't enough, which is no fault of the picture's.
    """
    try:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
            return _pixels(file, size), content
    except MemoryError as error:
        raise _too_large(path) from error
    except Exception as error:  # Pillow's readers raise whatever the bytes lead them to
        return Unreadable(path, _reason(error))


def decode_bytes(data: bytes, size: ImageSize, where: str) -> np.ndarray:
    """The image in `data` as uint8 (3, height, width). Raises Unreadable, with `where` it is, if it can't be read."""
    try:
        return _pixels(io.BytesIO(data), size)
    except MemoryError as error:
        raise _too_large(where) from error
    except Exception as error:
        raise Unreadable(where, _reason(error)) from error


def _too_large(where: Path | str) -> ZooError:
    return ZooError(
        f"the memory isn't enough to read the image {os.fsencode(where).decode('utf-8', 'backslashreplace')}; free "
        "some, or make the image smaller"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


@cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _pixels(file, size: ImageSize) -> np.ndarray:
    import numpy as np
    from PIL import Image

    if not file.seek(0, os.SEEK_END):
        raise ValueError("the file is empty")
    file.seek(0)
    try:
        image = Image.open(file, formats=_formats())
    except Image.UnidentifiedImageError:
        raise ValueError("its content isn't an image of a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"it has more than {MOST_PIXELS:,} pixels") from None
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"its {image.width:,} x {image.height:,} pixels are more than {MOST_PIXELS:,}")
        extent = image.size
        if image.format == "JPEG":  # decoded at 1/2, 1/4 or 1/8 where that leaves twice the wanted size
            height, width = _before_turning(image, size)
            drafted = image.draft(None, (2 * width, 2 * height))
            extent = drafted[1][2:] if drafted else extent  # 300 / 8 is 37.5, of 38 pixels
        image.load()
        small = covering(image, size, extent)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


def covering(image: Image, size: ImageSize, extent: tuple[float, float] | None = None) -> Image:
    """An open PIL image in the form in which every image is read: RGB, upright, 8 bits, transparent parts on white.

    The image is resized, antialiased, so that it just covers `size`; then the centre is cut out.
    `extent` is the image's width and height, where they aren't whole pixels.
    """
    shape = _before_turning(image, size)
    return _upright(_small_rgb(image, image.size if extent is None else extent, shape), _orientation(image))


def _before_turning(image: Image, size: ImageSize) -> tuple[int, int]:
    """Height and width that become `size` once the image is turned as its EXIF data say."""
    height, width = height_width(size)
    return (height, width) if height == width or _orientation(image) not in SIDEWAYS else (width, height)


def _small_rgb(image: Image, extent: tuple[float, float], shape: tuple[int, int]) -> Image:
    from PIL import Image as pillow

    if image.mode == "F" or image.mode.startswith("I"):
        return pillow.fromarray(_eight_bits(_small(_deep(image), extent, shape))).convert("RGB")
    if image.has_transparency_data:
        image = _small(image.convert("RGBA"), extent, shape)  # Pillow weighs colours by their alpha
        return pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image).convert("RGB")
    return _small(image.convert("RGB"), extent, shape)


def _small(image: Image, extent: tuple[float, float], shape: tuple[int, int]) -> Image:
    """The centre of the image at `shape` (height, width). Only the centre is made, since a thin strip resized whole
    would need too much memory.
    """
    from PIL import Image as pillow

    (width, height), (rows, columns) = extent, shape
    if width * rows <= height * columns:  # the image is the narrower of the two
        across, down = width, width * rows / columns
    else:
        across, down = height * columns / rows, height
    left, top = (width - across) / 2, (height - down) / 2
    box = (left, top, left + across, top + down)
    return image.resize((columns, rows), pillow.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _deep(image: Image) -> Image:
    """Grey values beyond 8 bits -> floats in 0..255.

    Integers count as 16 bits; floats as 0..1, or as 0..255 if any is above 1. What lies outside of that has
    no fixed meaning, and its own lowest and highest value become 0 and 255.
    """
    import numpy as np
    from PIL import Image as pillow

    values = np.asarray(image).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("some of its values aren't finite numbers")
    full = 65535.0 if image.mode != "F" else 1.0 if high <= 1 else 255.0
    if low >= 0 and high <= full:
        values *= 255 / full
    else:
        values = (values - low) * (255 / ((high - low) or 1.0))  # of one value everywhere it is black
    return pillow.fromarray(values)


def _eight_bits(image: Image) -> np.ndarray:
    import numpy as np

    return np.asarray(image).round().clip(0, 255).astype(np.uint8)


def _orientation(image: Image) -> int:
    """The EXIF orientation, 1 to 8; damaged EXIF data don't make the pixels worse."""
    try:
        return image.getexif().get(0x0112, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, OSError, struct.error):
        return 1


def _upright(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image

"""One image file -> one small square of RGB, whatever it holds; or a sentence on what is wrong with it."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import ZooError

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
MOST_PIXELS = 89_478_485  # above this Pillow warns of a decompression bomb; as RGBA it is 358 MB


class Unreadable(ZooError):
    """An image that can't be read, and the reason alone."""

    def __init__(self, path: Path | str, reason: str):
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        super().__init__(f"the image {shown} can't be read ({reason}); remove it or mend it")
        self.reason = reason


def decode(path: Path, size: int) -> tuple[np.ndarray, str] | Unreadable:
    """The image in `path` as uint8 (3, size, size), and the sha256 of the file.

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


def decode_bytes(data: bytes, size: int, where: str) -> np.ndarray:
    """The image in `data` as uint8 (3, size, size). Raises Unreadable, with `where` it is, if it can't be read."""
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


def _pixels(file, size: int) -> np.ndarray:
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
            drafted = image.draft(None, (2 * size, 2 * size))
            extent = drafted[1][2:] if drafted else extent  # 300 / 8 is 37.5, of 38 pixels
        image.load()
        square = squared(image, size, extent)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def squared(image: Image, size: int, extent: tuple[float, float] | None = None) -> Image:
    """An open PIL image as all pictures are read: RGB, upright, on white where it is transparent, more than 8 bits
    scaled to 8, the short side to `size` and the centre cut out. `extent` is width and height, where they aren't whole
    pixels.
    """
    return _upright(_square_rgb(image, image.size if extent is None else extent, size), _orientation(image))


def _square_rgb(image: Image, extent: tuple[float, float], size: int) -> Image:
    from PIL import Image as pillow

    if image.mode == "F" or image.mode.startswith("I"):
        return pillow.fromarray(_eight_bits(_square(_deep(image), extent, size))).convert("RGB")
    if image.has_transparency_data:
        image = _square(image.convert("RGBA"), extent, size)  # Pillow weighs colours by their alpha
        return pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image).convert("RGB")
    return _square(image.convert("RGB"), extent, size)


def _square(image: Image, extent: tuple[float, float], size: int) -> Image:
    """Short side to `size`, antialiased, and the centre; only that is made, as a thin strip would explode."""
    from PIL import Image as pillow

    width, height = extent
    short = min(extent)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return image.resize((size, size), pillow.Resampling.BICUBIC, box=box, reducing_gap=3.0)


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

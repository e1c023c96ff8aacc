"""One sound file -> samples of one channel at one rate and of one length; or a sentence on what is wrong with the file.

Sounds are read by soundfile (the extra `audio`), and resampled by scipy.
"""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.data.media.decode import Unreadable
from zoo.errors import ZooError
from zoo.fields import Audio

if TYPE_CHECKING:
    import numpy as np

EXTENSIONS = frozenset((".wav", ".flac", ".ogg"))
FULL = 32768  # the amplitude 1.0 in 16 bits


class Header(NamedTuple):
    """What a sound file says of itself: samples a second, and samples of each channel."""

    rate: int
    samples: int


def _soundfile():
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError where libsndfile isn't there
        raise ZooError("sounds are read by soundfile; pip install 'pretext-zoo[audio]'") from error
    return soundfile


def header(path: Path | bytes, where: str = "") -> Header | Unreadable:
    """The header of a sound file, or of its bytes. Raises ZooError where soundfile isn't installed."""
    soundfile = _soundfile()
    try:
        found = soundfile.info(io.BytesIO(path) if isinstance(path, bytes) else str(path))
    except Exception as error:  # libsndfile says what the bytes lead it to
        return Unreadable(where or path, _reason(error), "sound")
    if found.frames < 1:
        return Unreadable(where or path, "it has no samples", "sound")
    return Header(found.samplerate, found.frames)


def decode(path: Path, audio: Audio) -> tuple[np.ndarray, str] | Unreadable:
    """The sound in `path` as int16 (samples,), and the sha256 of the file.

    Channels are averaged. A file of another rate is resampled. A long sound is cut at its end, and a short one is
    padded with silence. An Unreadable is returned, not raised, for a file that can't be read.
    """
    try:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            return _samples(file, audio), content
    except ZooError:
        raise
    except Exception as error:
        return Unreadable(path, _reason(error), "sound")


def decode_bytes(data: bytes, audio: Audio, where: str) -> np.ndarray:
    """The sound in `data` as int16 (samples,). Raises Unreadable, with `where` it is, for what can't be read."""
    try:
        return _samples(io.BytesIO(data), audio)
    except ZooError:
        raise
    except Exception as error:
        raise Unreadable(where, _reason(error), "sound") from error


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text or type(error).__name__).split()).rstrip(".")


def _samples(file, audio: Audio) -> np.ndarray:
    import numpy as np

    with _soundfile().SoundFile(file) as sound:
        common = math.gcd(audio.rate, sound.samplerate)
        up, down = audio.rate // common, sound.samplerate // common
        wanted = -(-audio.samples * down // up) + (
            0 if up == down else sound.samplerate // 10
        )  # the filter looks ahead
        values = sound.read(wanted, dtype="float32", always_2d=True).mean(1)
    if not len(values):
        raise ValueError("it has no samples")
    if not np.isfinite(values).all():
        raise ValueError("some of its samples aren't finite numbers")
    if up != down:
        from scipy.signal import resample_poly

        values = resample_poly(values, up, down)
    out = np.zeros(audio.samples, "<i2")
    values = values[: audio.samples]
    out[: len(values)] = (values * FULL).round().clip(-FULL, FULL - 1)
    return out

"""The samples of a tar, from its headers: consecutive members whose names agree up to the first dot."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zoo.data.folder.cache import shown
from zoo.data.media import sound
from zoo.data.media.decode import EXTENSIONS
from zoo.data.media.text import check_text
from zoo.errors import ZooError

MOST_CLASSES = 1_000_000  # a label beyond is taken for something else than the number of a class
MOST_BYTES = 1 << 30  # of an image or a sound; a thousandth of that for the others


@dataclass
class Sample:
    """What the headers say of one sample while it is put together.

    image  byte and size of the member
    audio  the same, and its rate and samples
    """

    key: str
    image: tuple[int, int] | None = None
    audio: tuple[int, int, int, int] | None = None
    label: int | None = None
    text: str | None = None
    other: list[str] = field(default_factory=list)

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(name for name in ("image", "audio", "label", "text") if getattr(self, name) is not None)


def samples(shard: Path, length: int) -> Iterator[Sample]:
    """The samples of a tar, in order. Only headers, and what isn't a picture, are read."""
    sample, end = None, 0
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # which would grow with the shard
                end = member.offset_data + member.size
                if end > length or member.size < 0:
                    raise tarfile.ReadError("unexpected end of data")
                if not member.isreg() or member.issparse():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                if not stem:  # a hidden file, of no sample
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if sample is None or sample.key != key:
                    if sample is not None and _complete(sample, shard):
                        yield sample
                    sample = Sample(key)
                _add(sample, kind.lower(), member, tar, shard)
        with open(shard, "rb") as file:
            file.seek(end + -end % 512)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError("its closing mark is missing")
    except ZooError:
        raise
    except OSError as error:
        raise ZooError(f"the shard {shown(shard)} can't be read: {error.strerror}") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ZooError(f"the shard {shown(shard)} is damaged or cut short ({error}); get or make it again") from error
    if sample is not None and _complete(sample, shard):
        yield sample


def _add(sample: Sample, kind: str, member: tarfile.TarInfo, tar: tarfile.TarFile, shard: Path) -> None:
    extension = f".{kind.rpartition('.')[2]}"
    picture, heard = extension in EXTENSIONS, extension in sound.EXTENSIONS
    if member.size > (MOST_BYTES if picture or heard else MOST_BYTES >> 10):
        raise ZooError(f"{member.name} of {shown(shard)} has {member.size:,} bytes, which is too much for one sample")
    if picture:
        if sample.image is not None:
            raise ZooError(
                f"sample {sample.key} of {shown(shard)} has two pictures, the second being {member.name}; give each "
                "its own number"
            )
        sample.image = member.offset_data, member.size
    elif heard:
        if sample.audio is not None:
            raise ZooError(
                f"sample {sample.key} of {shown(shard)} has two sounds, the second being {member.name}; give each its "
                "own number"
            )
        found = sound.header(tar.extractfile(member).read(), f"{member.name} of {shown(shard)}")
        if not isinstance(found, sound.Header):
            raise found
        sample.audio = member.offset_data, member.size, *found
    elif kind in ("cls", "txt", "json"):
        content = tar.extractfile(member).read()
        try:
            if kind == "txt":
                sample.text = content.decode()
            else:
                given = {"label": int(content)} if kind == "cls" else json.loads(content)
                sample.label = given.get("label", sample.label)
                sample.text = given.get("text", sample.text)
                str(sample.text).encode()  # half a character is none
        except (ValueError, AttributeError, RecursionError) as error:
            raise ZooError(f"{member.name} of {shown(shard)} can't be read: {error}") from error
    else:
        sample.other.append(member.name)


def _complete(sample: Sample, shard: Path) -> bool:
    """Whether it is a sample; files of other kinds alone are none."""
    if sample.image is None and sample.audio is None and (sample.text is None or sample.other):
        if sample.label is None and sample.text is None:
            return False
        raise ZooError(
            f"sample {sample.key} of {shown(shard)} has no "
            f"picture{f' but {sample.other[0]}' if sample.other else ''}; pictures are "
            f"{' '.join(sorted(EXTENSIONS))}"
        )
    label, text = sample.label, sample.text
    if label is not None and (isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < MOST_CLASSES):
        raise ZooError(
            f"the label of sample {sample.key} of {shown(shard)} is {label!r}; it has to be a whole number from 0 to "
            f"{MOST_CLASSES - 1:,}"
        )
    if text is not None and not isinstance(text, str):
        raise ZooError(f"the text of sample {sample.key} of {shown(shard)} is {str(text)[:50]}; it has to be text")
    if text is not None:
        check_text(text, f"sample {sample.key} of {shown(shard)}")
    return True

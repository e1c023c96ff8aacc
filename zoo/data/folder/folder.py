"""`folder:PATH`: anybody's own images, texts or sounds as a data set, with nothing to set up.

Every image below PATH counts, whatever its size and format; without images, every sound; without both, every text.
Files that share an image's stem belong to its sample. What the folders say is taken as meant: a class per folder, or
train/, validation/ and test/. Images and sounds are decoded once, into a memory-mapped cache that is made anew when the
folder changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.data.dataset import Dataset
from zoo.data.folder.cache import VERSION, File, Policy, cached, image_form, shown
from zoo.data.folder.layout import Layout, layout_of
from zoo.data.folder.scan import Content, beside, content_of
from zoo.data.folder.sounds import Sounds, audio_of, sound_form
from zoo.data.folder.texts import check_some, texts_of
from zoo.data.info import DEFAULTS, DataInfo, Settings, check_size
from zoo.data.media.text import read_text
from zoo.errors import ZooError
from zoo.fields import Image, Kind, Label, Text, height_width

DEFAULT_SIZE = 64


def folder_info(path: str | Path, settings: Settings = DEFAULTS) -> DataInfo:
    """What `folder:PATH` holds, from the names of its files. Of images nothing is decoded, of sounds the headers are
    read, and texts are read whole.

    Every image is (3, 64, 64) unless `data.size` says otherwise: grey ones are repeated into three channels, so that a
    folder that gains its first colour image doesn't change shape. Raises ZooError as `load_folder` does, but for images
    and sounds that can't be decoded.
    """
    content = content_of(path)
    sort = _sort_of(content, settings)
    if sort == "text":
        texts = texts_of(content, settings.lines)
        return _info(path, {"text": _text(settings)}, texts.layout, len(texts.values))
    files, lacks = content.images if sort == "image" else content.sounds, {}
    first = _image(settings) if sort == "image" else audio_of(content.root, files, settings)
    kinds: dict[str, Kind] = {sort: first}
    if sort == "image" and (sounds := _companions("audio", content.sounds, files, lacks)):
        kinds["audio"] = audio_of(content.root, sounds, settings)
    if _companions("text", content.texts, files, lacks):
        kinds["text"] = _text(settings)
    return _info(path, kinds, layout_of([file.path for file in files], content.root), len(files), lacks)


def load_folder(
    path: str | Path,
    size: int | Sequence[int] | None = None,
    bad_samples: str = "raise",
    bad_share: float = 0.001,
    **more,
) -> Dataset:
    """The samples below `path`, sorted.

    Images: `image` uint8 (n, 3, height, width). Images are turned as their EXIF data say, laid on white where
    transparent, and scaled to 8 bits. They are resized, antialiased, to cover `size` (the side of a square or
    [height, width]; 64), and the centre is kept. Of an animation, the first frame is taken.

    Sounds: `audio`, a column of float32 (n, samples), kept with 16 bits. Channels are averaged. `rate` resamples;
    without it all files must have one rate. Sounds are cut or padded with silence to `seconds` (default: the median).

    Texts: `text`, n str, in memory. Beside images or sounds: the .txt of the same stem, where every sample has one.
    Alone: a .txt is a sample or, with `lines`, each of its lines that isn't blank; a row of one .csv, .tsv or .jsonl
    with a column `text` and maybe `label`. `length` is the number of tokens that a text backbone will read.

    Labels, `label` int64 (n,): when every file lies in one of two or more subfolders, the first folder on its way is
    its class; else there are none. Splits: top folders train/ with val/, valid/, validation/ or test/ are the splits.
    Otherwise, and for one that is absent, a tenth of the training samples each, by a hash of the path (of the text, for
    lines and rows), so that a new sample moves no other; except that each class keeps a sample in train, and that no
    split stays empty where samples can be spared.

    `image` and `audio` lie in private memory maps of files below `ZOO_HOME`/cache: only rows that are indexed are
    read, and writing to them changes no file. Memory doesn't grow with the folder. Safe to call in several processes at
    once.

    Images (or sounds, where they are the samples) that can't be read: `raise` names them; `skip` leaves them out;
    `replace` puts the next readable one of the same split and class in their place, so that rows keep their number.
    Either is done to at most `bad_share` of the samples, is part of the fingerprint, and leaves a list,
    `bad_samples.jsonl`, in the cache and in `bad` of what is returned.

    Raises ZooError for a folder that is absent, is a file, or holds fewer than two samples, for files that can't be
    read (naming them; see above), and for a cache that can't be written.
    """
    settings = Settings(size=size, bad_samples=bad_samples, bad_share=bad_share, **more)
    content = content_of(path)
    sort = _sort_of(content, settings)
    return _load_texts(path, content, settings) if sort == "text" else _load_media(path, content, settings, sort)


def look(path: str | Path) -> tuple[Path, list[File], Layout]:
    """The folder, its image files, and what their names say. Raises ZooError as `load_folder` does."""
    content = content_of(path)
    if len(content.images) < 2:
        raise _too_few(content)
    return content.root, content.images, layout_of([file.path for file in content.images], content.root)


# ---- what the samples are ----------------------------------------------------------------------------------
def _sort_of(content: Content, settings: Settings) -> str:
    """What a sample of the folder is: an image, else a sound (audio), else a text."""
    if len(content.images) >= 2:
        return "image"
    if len(content.sounds) >= 2:
        return "audio"
    if not content.images and not content.sounds:
        if content.tables or len(content.texts) >= 2 or (content.texts and settings.lines):
            return "text"
    raise _too_few(content)


def _too_few(content: Content) -> ZooError:
    from zoo.data.media.decode import EXTENSIONS

    others = content.others.copy()
    for file in (*content.texts, *content.tables, *content.sounds):
        others[Path(file.path).suffix.lower()] += 1
    rest = ", ".join(f"{count:,} {kind or 'without extension'}" for kind, count in others.most_common(3))
    rest = f"; other files there: {rest}" if rest else ""
    few = "one image" if content.images else "no image"
    lines = "; with data.lines each line of a .txt is a sample" if content.texts and not content.images else ""
    return ZooError(
        f"{shown(content.root)} holds {few} and at least two are needed{rest}; images are "
        f"{' '.join(sorted(EXTENSIONS))}{lines}"
    )


def _companions(field: str, others: list[File], files: list[File], lacks: dict[str, str]) -> list[File] | None:
    """The file of the same stem for each of `files`; None, and in `lacks` the reason, where some have none."""
    if not others:
        return None
    found = beside(files, others)
    count = sum(other is not None for other in found)
    if count == len(files):
        return found
    if count:
        without = files[found.index(None)].path
        noun = "sound" if field == "audio" else "text"
        lacks[field] = (
            f"{count:,} of its {len(files):,} samples have a {noun} of their name, and {shown(without)} has none"
        )
    return None


def _image(settings: Settings) -> Image:
    return Image(3, *height_width(check_size(settings.size, smallest=4) or DEFAULT_SIZE))


def _text(settings: Settings) -> Text:
    return Text() if settings.length is None else Text(settings.length)


def _info(
    path: str | Path, kinds: dict[str, Kind], layout: Layout, count: int, lacks: dict[str, str] | None = None
) -> DataInfo:
    plain, labelled = str(path).removeprefix("folder:"), layout.labels is not None
    noun = {"image": "images", "audio": "sounds", "text": "texts"}[next(iter(kinds))]
    kind = f"{len(layout.classes)} classes" if labelled else f"unlabelled: {layout.why}"
    if labelled and noun != "texts":
        kind += ", one per folder"
    label = {"label": Label(layout.classes)} if labelled else {}
    first, *others = kinds.items()
    return DataInfo(
        name=f"folder:{plain}",
        kinds=dict([first]) | label | dict(others),
        version=VERSION,
        license="unknown",
        splits={name: len(rows) for name, rows in layout.splits.items()},
        summary=f"{count:,} {noun}, {kind}",
        lacks=lacks or {},
    )


# ---- reading them ------------------------------------------------------------------------------------------
def _load_media(path: str | Path, content: Content, settings: Settings, sort: str) -> Dataset:
    """A folder whose samples are images or sounds, and the files of the same stems."""
    import torch

    files = content.images if sort == "image" else content.sounds
    kind: Any = _image(settings) if sort == "image" else audio_of(content.root, files, settings)
    form = image_form(kind.size) if sort == "image" else sound_form(kind)
    layout = layout_of([file.path for file in files], content.root)
    policy = Policy(settings.bad_samples, settings.bad_share, lambda bad: _substitutes(bad, layout, files))
    rows, fingerprint, bad = cached(content.root, files, form, policy)
    if bad and settings.bad_samples == "skip":
        left_out = {entry["path"] for entry in bad}
        files = [file for file in files if shown(file.path) not in left_out]
        layout = layout_of([file.path for file in files], content.root)
    fields: dict[str, Any] = {sort: torch.from_numpy(rows) if sort == "image" else Sounds(rows)}
    if layout.labels is not None:
        fields["label"] = torch.tensor(layout.labels, dtype=torch.int64)
    beside, kinds, lacks, prints = _beside(content, files, settings, sort, _instead(bad, files))
    if prints:
        fingerprint = hashlib.sha256(" ".join([fingerprint, *prints]).encode()).hexdigest()
    info = _info(path, {sort: kind} | kinds, layout, len(files), lacks)
    return Dataset(info, fields | beside, _tensors(layout.splits), fingerprint, bad)


def _beside(content: Content, files: list[File], settings: Settings, sort: str, instead: dict[int, int]):
    """The fields that lie beside `files`, their kinds, why others aren't there, and a fingerprint of each field."""
    fields, kinds, lacks, prints = {}, {}, {}, []
    if sort == "image" and (sounds := _companions("audio", content.sounds, files, lacks)):
        kinds["audio"] = audio_of(content.root, sounds, replace(settings, bad_samples="raise"))
        rows, fingerprint, _ = cached(content.root, sounds, sound_form(kinds["audio"]), Policy())
        fields["audio"] = Sounds(rows, instead)
        prints.append(fingerprint)
    if texts := _companions("text", content.texts, files, lacks):
        values = [read_text(content.root / file.path) for file in texts]
        check_some(values, content.root)
        fields["text"], kinds["text"] = [values[instead.get(row, row)] for row in range(len(values))], _text(settings)
        prints.append(hashlib.sha256("\0".join(values).encode()).hexdigest())
    return fields, kinds, lacks, prints


def _instead(bad: list[dict], files: list[File]) -> dict[int, int]:
    """Row -> the row that stands in for it, where samples that can't be read were replaced."""
    if not bad or "replaced_by" not in bad[0]:
        return {}
    row_of = {shown(file.path): row for row, file in enumerate(files)}
    return {row_of[entry["path"]]: row_of[entry["replaced_by"]] for entry in bad}


def _load_texts(path: str | Path, content: Content, settings: Settings) -> Dataset:
    import torch

    texts = texts_of(content, settings.lines)
    fields: dict[str, Any] = {"text": texts.values}
    if texts.layout.labels is not None:
        fields["label"] = torch.tensor(texts.layout.labels, dtype=torch.int64)
    info = _info(path, {"text": _text(settings)}, texts.layout, len(texts.values))
    return Dataset(info, fields, _tensors(texts.layout.splits), texts.fingerprint)


def _tensors(splits: dict[str, list[int]]) -> dict:
    import torch

    return {name: torch.tensor(rows, dtype=torch.int64) for name, rows in splits.items()}


def _substitutes(bad: set[int], layout: Layout, files: list[File]) -> dict[int, int]:
    """For each bad row, the next good one (after the last comes the first) of the same split and class."""
    out = {}
    for name, rows in layout.splits.items():
        for row in bad.intersection(rows):
            alike = [
                other
                for other in rows
                if other not in bad and (layout.labels is None or layout.labels[other] == layout.labels[row])
            ]
            if not alike:
                raise ZooError(
                    f"{shown(files[row].path)} can't be read, and the {name} split has no other of its class "
                    "to replace it; "
                    "mend or remove it, or set data.bad_samples to skip"
                )
            out[row] = next((other for other in alike if other > row), alike[0])
    return out

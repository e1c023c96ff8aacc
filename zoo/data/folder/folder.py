"""`folder:PATH`: anybody's own pictures as a data set, with nothing to set up.

Every image below PATH counts, whatever its size and format. What the folders say is taken as meant: a class
per folder, or train/, validation/ and test/. The pixels are decoded once, into a memory-mapped cache that is
made anew when the folder changes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.data.dataset import Dataset
from zoo.data.folder.cache import VERSION, File, Policy, cached, image_form
from zoo.data.folder.cache import shown as _shown
from zoo.data.info import DataInfo, check_size
from zoo.errors import ZooError, nearest
from zoo.fields import ImageSize

DEFAULT_SIZE = 64
IGNORED = ("__MACOSX",)  # beside everything whose name begins with a dot
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
WAYS = ("raise", "skip", "replace")


@dataclass(frozen=True)
class Layout:
    """What the folder structure says. `labels` is None for unlabelled images, and `why` then says why."""

    classes: tuple[str, ...]
    labels: list[int] | None
    splits: dict[str, list[int]]
    why: str = ""


def folder_info(path: str | Path) -> DataInfo:
    """What `folder:PATH` holds, from the names of its files alone: nothing is decoded.

    Every image is (3, 64, 64) unless `data.size` says otherwise: grey ones are repeated into three channels,
    so that a folder that gains its first colour image doesn't change shape. Raises ZooError as `load_folder`
    does, but for unreadable images.
    """
    _, files, layout = look(path)
    return _info(path, files, layout, DEFAULT_SIZE)


def load_folder(
    path: str | Path, size: int | Sequence[int] | None = None, bad_samples: str = "raise", bad_share: float = 0.001
) -> Dataset:
    """The images below `path`, sorted: `image` uint8 (n, 3, height, width) and, if labelled, `label` int64 (n,).

    Images are turned as their EXIF data say, laid on white where transparent, and scaled to 8 bits. They are resized,
    antialiased, to cover `size` (the side of a square or [height, width]; 64), and the centre is kept. Of an animation,
    the first frame is taken.

    Labels: when every image lies in one of two or more subfolders, the first folder on its way is its class;
    else there are none. Splits: top folders train/ with val/, valid/, validation/ or test/ are the splits.
    Otherwise, and for one that is absent, a tenth of the training images each, by a hash of the path, so that
    a new image moves no other; except that each class keeps an image in train, and that no split stays empty
    where images can be spared.

    `image` lies in a private memory map of a file below `ZOO_HOME`/cache: only rows that are indexed are
    read, and writing to it changes no file. Memory doesn't grow with the folder. Safe to call in several
    processes at once.

    Images that can't be read: `raise` names them; `skip` leaves them out; `replace` puts the next readable one
    of the same split and class in their place, so that rows keep their number. Either is done to at most
    `bad_share` of the folder's images, is part of the fingerprint, and leaves a list, `bad_samples.jsonl`,
    in the cache and in `bad` of what is returned.

    Raises ZooError for a folder that is absent, is a file, or holds fewer than two images, for images that
    can't be read (naming them; see above), and for a cache that can't be written.
    """
    import torch

    size = check_size(size, smallest=4) or DEFAULT_SIZE
    check_policy(bad_samples, bad_share)
    root, files, layout = look(path)
    policy = Policy(bad_samples, bad_share, lambda bad: _substitutes(bad, layout, files))
    images, fingerprint, bad = cached(root, files, image_form(size), policy)
    if bad and bad_samples == "skip":
        left_out = {entry["path"] for entry in bad}
        files = [file for file in files if _shown(file.path) not in left_out]
        layout = _layout([file.path for file in files], root)
    fields = {"image": torch.from_numpy(images)}
    if layout.labels is not None:
        fields["label"] = torch.tensor(layout.labels, dtype=torch.int64)
    splits = {name: torch.tensor(rows, dtype=torch.int64) for name, rows in layout.splits.items()}
    return Dataset(_info(path, files, layout, size), fields, splits, fingerprint, bad)


def check_policy(bad_samples: str, bad_share: float) -> None:
    """Raises ZooError unless the one is a way to go about images that can't be read, and the other a share, 0 to 1."""
    if bad_samples not in WAYS:
        raise ZooError(f"data.bad_samples is {bad_samples!r}{nearest(bad_samples, WAYS)}")
    if not 0 <= bad_share <= 1:
        raise ZooError(f"data.bad_share is {bad_share}; it is a share of the images, from 0 to 1")


def _info(path: str | Path, files: list[File], layout: Layout, size: ImageSize) -> DataInfo:
    plain, labelled = str(path).removeprefix("folder:"), layout.labels is not None
    kind = f"{len(layout.classes)} classes, one per folder" if labelled else f"unlabelled: {layout.why}"
    return DataInfo(
        name=f"folder:{plain}",
        fields=("image", "label") if labelled else ("image",),
        channels=3,
        size=size,
        classes=layout.classes,
        version=VERSION,
        license="unknown",
        attribution="",
        homepage="",
        splits={name: len(rows) for name, rows in layout.splits.items()},
        summary=f"{len(files):,} images, {kind}",
    )


def look(path: str | Path) -> tuple[Path, list[File], Layout]:
    """The folder, its image files, and what their names say. Raises ZooError as `load_folder` does."""
    from zoo.data.media.decode import EXTENSIONS

    plain = str(path).removeprefix("folder:")
    if not plain.strip():
        raise ZooError("folder: needs a path, as in folder:~/pictures")
    root = Path(os.path.expanduser(plain)).absolute()
    if not os.path.exists(root):
        above = root.parent
        listed = os.scandir(above) if os.path.isdir(above) and os.access(above, os.R_OK) else ()
        beside = [_shown(entry.name) for entry in listed if entry.is_dir()]
        raise ZooError(f"there is no folder {_shown(root)}{nearest(root.name, beside)}")
    if not os.path.isdir(root):
        raise ZooError(f"{_shown(root)} is a file; give the folder that holds the images")
    root = root.resolve()
    files, others = _scan(root, EXTENSIONS)
    if len(files) < 2:
        rest = ", ".join(f"{count:,} {kind or 'without extension'}" for kind, count in others.most_common(3))
        rest = f"; other files there: {rest}" if rest else ""
        few = "one image" if files else "no image"
        raise ZooError(
            f"{_shown(root)} holds {few} and at least two are needed{rest}; images are {' '.join(sorted(EXTENSIONS))}"
        )
    return root, files, _layout([file.path for file in files], root)


# ---- which files -------------------------------------------------------------------------------------------
def _scan(root: Path, extensions: Iterable[str]) -> tuple[list[File], Counter]:
    """All image files below `root`, sorted by path, and how many others there are by extension.

    Linked folders are followed once the real ones are through, and each real folder is entered once: so a
    link back into the folder, or a loop of links, adds nothing.
    """
    extensions = frozenset(extensions)
    files, others, seen, folders, links = [], Counter(), set(), [(root, "")], []
    seen.update(_identity(above) for above in root.parents)
    while folders or links:
        folder, prefix = folders.pop() if folders else links.pop()
        if (identity := _identity(folder)) in seen:
            continue
        seen.add(identity)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise ZooError(
                f"the folder {_shown(folder)} can't be listed: {error.strerror}; make it readable or move it away"
            ) from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name in IGNORED:
                continue
            kind = os.path.splitext(entry.name)[1].lower()
            try:
                status = entry.stat()
            except OSError as error:  # a link to nowhere; what becomes of it is said where it is decoded
                if kind in extensions and error.errno != errno.ELOOP:
                    files.append(File(prefix + entry.name, 0, 0))
                continue
            if stat.S_ISDIR(status.st_mode):
                found = (Path(entry.path), f"{prefix}{entry.name}/")
                (links if entry.is_symlink() else folders).append(found)
            elif stat.S_ISREG(status.st_mode) and kind in extensions:
                files.append(File(prefix + entry.name, status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)))
            else:
                others[kind] += 1
        links.sort(key=lambda link: link[1], reverse=True)
    return sorted(files), others


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


# ---- what they mean ----------------------------------------------------------------------------------------
def _layout(files: list[str], root: Path) -> Layout:
    parts = [file.split("/") for file in files]
    tops = {part[0] for part in parts if len(part) > 1}
    given = {SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    apart = "train" in given and (len(given) > 1 or (len(tops) == 1 and all(len(part) > 1 for part in parts)))
    if apart:
        for file, part in zip(files, parts):
            if len(part) == 1 or part[0].lower() not in SPLITS:
                raise ZooError(
                    f"{_shown(root)} has folders for splits ({', '.join(sorted(given))}), but "
                    f"{_shown(file)} lies in none of them; move it into one, or away"
                )
    split_of = [SPLITS[part[0].lower()] if apart else "train" for part in parts]
    inner = [part[1:] if apart else part for part in parts]

    flat = next((file for file, part in zip(files, inner) if len(part) == 1), None)
    classes = tuple(sorted({part[0] for part in inner if len(part) > 1}))
    labels, why = None, ""
    if flat is not None:
        why = f"{_shown(flat)} lies in no class folder"
    elif len(classes) < 2:
        why = f"{_shown(classes[0])} is the only folder"
    else:
        number = {name: k for k, name in enumerate(classes)}
        labels = [number[part[0]] for part in inner]

    pool = [row for row, split in enumerate(split_of) if split == "train"]
    absent = [split for split in ("validation", "test") if split not in given or not apart]
    for row, split in _carve(files, pool, labels or [0] * len(files), absent).items():
        split_of[row] = split
    splits = {
        name: [row for row, split in enumerate(split_of) if split == name] for name in ("train", "validation", "test")
    }
    return Layout(tuple(map(_shown, classes)) if labels is not None else (), labels, splits, why)


def _carve(files: list[str], pool: list[int], groups: list[int], names: list[str]) -> dict[int, str]:
    """The split of each row of `pool`: a tenth for each of `names`, the rest train, by a hash of the path.

    The lowest draw of a class goes to train if the class has none there; the highest that can be spared goes
    to a split that would be empty. Both only bite in small folders.
    """
    draw = {
        row: int.from_bytes(hashlib.blake2b(os.fsencode(files[row]), digest_size=8).digest(), "little") for row in pool
    }
    tenths = dict(zip((9, 8), reversed(names)))
    share = {row: tenths.get(draw[row] * 10 >> 64, "train") for row in pool}
    present = {groups[row] for row in pool if share[row] == "train"}
    for group in {groups[row] for row in pool} - present:
        share[min((row for row in pool if groups[row] == group), key=draw.get)] = "train"
    for name in names:
        if name not in share.values():
            keep = {row: (share[row], groups[row] if share[row] == "train" else None) for row in pool}
            count = Counter(keep.values())
            spare = [row for row in pool if count[keep[row]] > 1]
            if spare:
                share[max(spare, key=draw.get)] = name
    return share


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
                    f"{_shown(files[row].path)} can't be read, and the {name} split has no other image of its class "
                    "to replace it; "
                    "mend or remove it, or set data.bad_samples to skip"
                )
            out[row] = next((other for other in alike if other > row), alike[0])
    return out

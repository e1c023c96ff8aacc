"""The named data sets: what there is, and one of them as tensors. Importing this imports no torch.

Every set is read whole: images as one uint8 tensor, in memory or, if large, mapped from the disk. What was
decoded once is kept in `<home>/data/.../decoded/` with the sha256 of each file, and made anew when it doesn't
hold.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from zoo import paths
from zoo.data import plugged
from zoo.data.dataset import Dataset
from zoo.data.info import DEFAULTS, FOLDER, SHARDS, DataInfo, Settings
from zoo.data.media.resize import resize
from zoo.data.named.catalogue import ENTRIES, Entry
from zoo.data.sources.sources import Source
from zoo.errors import ZooError, nearest
from zoo.fields import ImageSize, height_width, size_name
from zoo.strict import UNPRINTABLE, printable

MAPPED = 512 << 20  # bytes from which an array is mapped instead of read
LAYOUT = 1  # of the decoded files; raise it when what they hold changes

log = logging.getLogger(__name__)


def list_data() -> list[DataInfo]:
    """Every named set, in the order of the names. There are also `folder:PATH` and `shards:PATH`."""
    return [ENTRIES[name].info for name in sorted(ENTRIES)]


class Resolved(NamedTuple):
    """What a name of data stands for: two functions, neither of which is called before it is needed.

    info  -> the entry, as the set will be when it is read with the settings
    load  -> the set; `download` says whether the network may be asked
    """

    info: Callable[[], DataInfo]
    load: Callable[[bool], Dataset]


def resolve(name: str, settings: Settings = DEFAULTS) -> Resolved:
    """The only place where a name becomes a data set. Raises ZooError for a name that there isn't.

    Args:
        name: of a set, `folder:PATH`, or `shards:PATH`.
        settings: how it is to be read.
    """
    if isinstance(name, str) and UNPRINTABLE.search(name):
        raise ZooError(
            f"{printable(name)} has characters that can't be printed, which no card may hold; rename the folder, or "
            "link to it by another name"
        )
    if isinstance(name, str) and name.startswith(FOLDER):
        from zoo.data.folder import folder

        path = name.removeprefix(FOLDER)
        return Resolved(
            lambda: folder.folder_info(path, settings), lambda download: folder.load_folder(path, **vars(settings))
        )
    if isinstance(name, str) and name.startswith(SHARDS):
        path = name.removeprefix(SHARDS)
        return Resolved(
            lambda: _shards().shards_info(path, settings), lambda _: _shards().load_shards(path, **vars(settings))
        )
    if plugin := plugged.find(name):
        return Resolved(
            lambda: _described(settings, plugged.plugged_info(plugin)),
            lambda _: _with_entry(settings, plugged.load_plugged(plugin, settings.size)),
        )
    entry = _entry(name)
    return Resolved(lambda: _described(settings, entry.info), lambda download: _load_named(entry, settings, download))


def _described(settings: Settings, info: DataInfo) -> DataInfo:
    """The entry of a set that isn't a folder's or shards'. Raises ZooError for settings that only those have."""
    for key in ("seconds", "rate", "lines"):
        if getattr(settings, key):
            raise ZooError(f"data.{key} can't be set for {info.name}; only folder:PATH and shards:PATH have that key")
    return settings.applied(info)


def _with_entry(settings: Settings, made: Dataset) -> Dataset:
    return replace(made, info=_described(settings, made.info))


def _shards():
    from zoo.data.shards import shards  # imports torch

    return shards


def data_info(name: str, settings: Settings = DEFAULTS) -> DataInfo:
    """The entry of a set, as it will be when it is read with `settings`.

    Of a folder of images only the file names are read; of sounds the headers, of texts all. Shards are indexed once.
    """
    return resolve(name, settings).info()


def get_data(name: str, source: Path | str | None = None) -> Path:
    """Get a set's raw files (`zoo data get NAME [--from FILE]`) and return their folder.

    source: a .deb, a .tar or .tgz, a folder (which may hold such archives) or one of the raw files. Without
    it: the files that are there, if they are intact, else the first way that is open. Raises ZooError.
    """
    if isinstance(name, str) and name.startswith((FOLDER, SHARDS)):
        raise ZooError(f"{name} needs no getting: it is read where it lies")
    if plugin := plugged.find(name):
        raise plugged.refused_getting(plugin)
    entry = _entry(name)
    if entry.source is None:
        if source is not None:
            raise ZooError(f"{name} comes with scikit-learn and can't be given; `pip install scikit-learn`")
        _read(entry, entry.info.size)  # says what is missing, if anything is
        import sklearn.datasets

        return Path(sklearn.datasets.__file__).parent / "data"
    from zoo.data.sources import sources

    return sources.get(sources.SOURCES[entry.source], None if source is None else paths.expanded(source))


def load_data(
    name: str,
    size: int | Sequence[int] | None = None,
    download: bool = True,
    bad_samples: str = "raise",
    bad_share: float = 0.001,
    **more,
) -> Dataset:
    """A data set by name, `folder:PATH`, or `shards:PATH`.

    size: side of square images in pixels, or [height, width]; default the set's own. Images of another size are
    made once (resized to cover it, antialiased, then a centre crop), and kept.
    bad_samples, bad_share: what to do about samples that can't be read; see load_folder and load_shards. Named sets
    have none.
    more: length, seconds, rate and lines of people's own texts and sounds; see load_folder.
    download=False, or ZOO_OFFLINE=1 in the environment, never asks the network.
    Raises ZooError: unknown name or size, files that are damaged or can't be got.
    """
    settings = Settings(size=size, bad_samples=bad_samples, bad_share=bad_share, **more)
    return resolve(name, settings).load(download)


def _load_named(entry: Entry, settings: Settings, download: bool) -> Dataset:
    _described(settings, entry.info)
    size = settings.size or entry.info.size
    if entry.source is None:
        fields, splits = _read(entry, size)
        from zoo.data.named.readers import DIGITS as digest
    else:
        from zoo.data.sources import sources

        source = sources.SOURCES[entry.source]
        fields, splits = _load_decoded(entry, source, size, download)
        digest = sources.recorded_digest(source)
    return _with_entry(settings, _as_dataset(entry, size, fields, splits, digest))


def _entry(name: str) -> Entry:
    if not isinstance(name, str) or name not in ENTRIES:
        if isinstance(name, (str, Path)) and os.path.isdir(name):
            raise ZooError(f"{str(name)!r} is a folder, not the name of a data set; write folder:{name}")
        known = [*ENTRIES, *(plugin.name for plugin in plugged.installed()), "folder:PATH", "shards:PATH"]
        raise ZooError(f"there is no data set {name!r}{nearest(str(name), known)}")
    return ENTRIES[name]


def _as_dataset(entry: Entry, size: ImageSize, fields: dict, splits: dict, digest: str | None) -> Dataset:
    import torch

    counts = {split: len(index) for split, index in splits.items()}
    if counts != entry.info.splits:
        known = f"version {entry.info.version} has {entry.info.splits}"
        raise ZooError(f"{entry.info.name} has {counts} samples where {known}")
    tensors = {
        name: values if isinstance(values, list) else torch.from_numpy(values) for name, values in fields.items()
    }
    identity = f"{entry.info.name} {entry.info.version} {size_name(size)} {digest}"
    return Dataset(
        replace(entry.info, size=size),
        {name: tensors[name] for name in entry.info.fields},
        {split: torch.from_numpy(index) for split, index in splits.items()},
        hashlib.sha256(identity.encode()).hexdigest(),
    )


def _read(entry: Entry, size: ImageSize, raw: Path | None = None, folder: Path | None = None) -> tuple[dict, dict]:
    """Fields and splits as arrays, images at `size`."""
    import numpy as np
    import torch

    module, function = entry.reader.split(":")
    fields, splits = getattr(importlib.import_module(module), function)(raw, size, folder)
    if fields["image"].shape[-2:] != height_width(size):
        fields["image"] = resize(torch.from_numpy(np.ascontiguousarray(fields["image"])), size).numpy()
    return fields, splits


# Decoded files


def _load_decoded(entry: Entry, source: Source, size: ImageSize, download: bool) -> tuple[dict, dict]:
    from zoo.data.sources import sources

    folder = sources.folder_of(source.name) / "decoded" / f"{entry.info.name}-{size_name(size)}"
    found = _read_decoded(folder, entry, source)
    if found is not None:
        return found
    raw = sources.ensure(source, download)
    with sources.locked(source.name):
        found = _read_decoded(folder, entry, source)  # somebody may have made it while we waited
        if found is None:
            _write_decoded(folder, entry, source, size, raw)
            found = _read_decoded(folder, entry, source)
    if found is None:
        raise ZooError(f"{folder} doesn't hold what has just been written to it; check the disk")
    return found


def _write_decoded(folder: Path, entry: Entry, source: Source, size: ImageSize, raw: Path) -> None:
    import numpy as np

    from zoo.data.sources import sources

    try:
        folder.parent.mkdir(exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)  # of a process that died; we hold the lock
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
        try:
            fields, splits = _read(entry, size, raw, work)
            for name, values in {
                **fields,
                **{f"split-{name}": index for name, index in splits.items()},
            }.items():
                if isinstance(values, list):
                    (work / f"{name}.json").write_text(json.dumps(values))
                elif isinstance(values, np.memmap) and Path(values.filename) == work / "image.npy":
                    values.flush()
                else:
                    np.save(work / f"{name}.npy", np.ascontiguousarray(values))
            del fields, splits  # lets go of a map before its folder moves
            index = {
                "layout": LAYOUT,
                "version": entry.info.version,
                "raw": sources.recorded_digest(source),
                "files": sources.hash_files(work),
            }
            paths.write_text(work / "index.json", json.dumps(index, indent=1))
            work.chmod(0o755)
            if folder.exists():
                log.warning("%s was out of date or damaged and has been made anew", folder)
                shutil.rmtree(folder)
            os.replace(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        wanted = entry.info.channels * math.prod(height_width(size)) * sum(entry.info.splits.values())
        raise paths.explain(error, folder, wanted) from error


def _read_decoded(folder: Path, entry: Entry, source: Source) -> tuple[dict, dict] | None:
    """Fields and splits; None when they aren't there, belong to other raw files, or a byte has changed."""
    import numpy as np

    from zoo.data.sources import sources

    try:
        index = json.loads((folder / "index.json").read_text())
        wanted = (LAYOUT, entry.info.version, sources.recorded_digest(source))
        if (index["layout"], index["version"], index["raw"]) != wanted or wanted[2] is None:
            return None
        found = sources.hash_files(folder)
        if {name: found.get(name) for name in index["files"]} != index["files"]:
            return None
        values = {}
        for name in index["files"]:
            path = folder / name
            if path.suffix == ".json":
                values[path.stem] = json.loads(path.read_text())
            else:  # mode c: writable for torch's peace, changes never reach the file
                values[path.stem] = np.load(path, mmap_mode="c" if path.stat().st_size >= MAPPED else None)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    splits = {name.removeprefix("split-"): value for name, value in values.items() if name.startswith("split-")}
    fields = {name: value for name, value in values.items() if not name.startswith("split-")}
    return fields, {split: splits[split] for split in entry.info.splits if split in splits}

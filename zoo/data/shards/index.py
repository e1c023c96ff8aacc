"""Where every sample of a set of tar shards lies: read once from the tars' headers, and kept in memory-mapped columns.

The layout is webdataset's: a sample is the consecutive members whose names agree up to the first dot behind the last
slash, as in

    000017.jpg  000017.cls  000017.txt          picture, number of the class, text
    000018.jpg  000018.json                     the same as {"label": 3, "text": "a cat"}; its other keys don't count

With the place of each picture known a plain tar is read at any point, so no library has to stream it.
"""

from __future__ import annotations

import array
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import paths
from zoo.data.folder.cache import shown
from zoo.data.folder.layout import SPLITS
from zoo.data.shards.members import Sample, samples
from zoo.errors import ZooError, nearest

VERSION = "1"  # of the columns and the splits; part of every index's name and fingerprint
COLUMNS = {"shard": "i", "offset": "q", "size": "q", "draw": "I", "label": "q", "text_end": "q"}
AUDIO = {"audio_offset": "q", "audio_size": "q", "audio_rate": "q", "audio_samples": "q"}  # where there are sounds
MOST_SHARDS = 1_000_000  # that braces may name
HELD_BACK = 10_000  # samples of validation, and of test, beyond which a larger set doesn't give more


@dataclass(frozen=True)
class Index:
    """folder      of the columns, each a file of numbers, one per sample
    shards         the tars, in order; `counts` has the samples of each
    fields         image, and label or text where every sample has one
    splits         samples of train, validation and test, whose rows are columns too
    fingerprint    sha256 hex of names and sizes of the shards and of all columns; the pixels are not read
    """

    folder: Path
    shards: list[Path]
    counts: list[int]
    fields: tuple[str, ...]
    classes: tuple[str, ...]
    splits: dict[str, int]
    fingerprint: str

    def column(self, name: str):
        """A column as a numpy array in a private memory map; splits are `train`, `validation`, `test`."""
        import numpy as np

        path = self.folder / f"{name}.bin"
        kind = np.dtype(COLUMNS.get(name, "q"))
        return np.memmap(path, kind, mode="c") if path.stat().st_size else np.empty(0, kind)


def find_shards(path: str) -> tuple[Path, list[Path]]:
    """The folder and its tars, sorted by path: those below `path`, or those that it names as a pattern or in braces.
    Raises ZooError.
    """
    plain = os.path.expanduser(str(path).removeprefix("shards:"))
    if not plain.strip():
        raise ZooError("shards: needs a path, as in shards:~/pictures or shards:'~/pictures/train-*.tar'")
    if os.path.isdir(plain):
        root = Path(plain).resolve()
        found = sorted(p for p in root.rglob("*.tar") if (p.is_file() or p.is_symlink()) and not p.name.startswith("."))
        if lost := next((p for p in found if not p.exists()), None):
            raise ZooError(f"the shard {shown(lost)} is a link to nothing; mend it or remove it")
        if not found:
            packed = next(iter(sorted(p for p in root.rglob("*.tar.*") if p.is_file())), None)
            why = f"; {packed.name} is compressed, and only plain tars are read at any point" if packed else ""
            raise ZooError(
                f"{shown(root)} holds no .tar{why}; `zoo data shard FOLDER --out DIR` makes shards of a folder of "
                "pictures"
            )
        return root, found
    if ("{" in plain or "::" in plain) and not os.path.exists(plain):
        found = sorted({Path(p).resolve() for p in _in_braces(plain)})
    else:
        found = sorted(
            Path(p).resolve()
            for p in ([plain] if os.path.isfile(plain) else glob.glob(plain, recursive=True))
            if os.path.isfile(p)
        )
    if not found:
        above = Path(plain).absolute().parent
        beside = [shown(name) for name in os.listdir(above)] if above.is_dir() else []
        raise ZooError(f"there is no folder and no shard {shown(plain)}{nearest(Path(plain).name, beside)}")
    return Path(os.path.commonpath([p.parent for p in found])), found


def _in_braces(plain: str) -> list[str]:
    """The shards that webdataset's notation names, as in train-{000000..000146}.tar. Unlike those of a pattern, none of
    them may be missing.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise ZooError(
            f"shards named in braces, as {shown(plain)}, need webdataset; pip install 'pretext-zoo[webdataset]', or "
            "name them as "
            "a pattern with *"
        ) from None
    many = 1
    for group in re.findall(r"\{([^{}]*)\}", plain):
        ends = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", group)
        many *= abs(int(ends[1]) - int(ends[2])) + 1 if ends else group.count(",") + 1
    if re.search(r"[{}]", re.sub(r"\{(\d{1,9}\.\.\d{1,9}|[^{}]*,[^{}]*)\}", "", plain)):
        raise ZooError(
            f"{shown(plain)} isn't a name of shards in braces; such are train-{{000000..000146}}.tar and {{a,b}}.tar"
        )
    if many > MOST_SHARDS:
        raise ZooError(
            f"{shown(plain)} names {many:,} shards, and more than {MOST_SHARDS:,} aren't read; name fewer, or their "
            "folder"
        )
    named = expand_urls(plain)
    if lost := next((p for p in named if not os.path.isfile(p)), None):
        raise ZooError(
            f"there is no shard {shown(lost)}, one of the {len(named):,} of {shown(plain)}; get it, or name those "
            "that are there"
        )
    return named


def indexed(path: str) -> Index:
    """The index of the shards at `path`, made when there is none or when a shard's name, size or time has changed.

    Raises ZooError naming the shard that is cut short, isn't a tar, or holds a sample without a picture or with other
    fields than the rest.
    """
    root, shards = find_shards(path)
    names = [p.relative_to(root).as_posix() for p in shards]
    status = [p.stat() for p in shards]
    facts = [
        VERSION,
        str(root),
        *(f"{n}\0{s.st_size}\0{s.st_mtime_ns}" for n, s in zip(names, status, strict=True)),
        _classes_file(root),
    ]
    store = paths.home() / "cache"
    final = store / f"shards-{hashlib.sha256(os.fsencode(chr(1).join(facts))).hexdigest()[:16]}"
    if (found := _open(final, shards)) is not None:
        return found
    from filelock import FileLock

    try:
        store.mkdir(parents=True, exist_ok=True)
        with FileLock(store / f".{final.name}.lock"):
            if (found := _open(final, shards)) is not None:
                return found
            part = Path(tempfile.mkdtemp(dir=store, prefix=f".{final.name}-", suffix=".part"))
            try:
                _build(root, shards, names, [s.st_size for s in status], part)
                os.chmod(part, 0o755)
                shutil.rmtree(final, ignore_errors=True)
                os.rename(part, final)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise ZooError(
            f"{paths.explain(error, store, 64 * len(shards))}; ZOO_HOME can name another folder for caches"
        ) from error
    found = _open(final, shards)
    if found is None:
        raise ZooError(f"the index {final} vanished while it was being opened; run the command again")
    return found


def _open(final: Path, shards: list[Path]) -> Index | None:
    try:
        known = json.loads((final / "index.json").read_text(encoding="utf-8"))
        index = Index(
            final,
            shards,
            known["counts"],
            tuple(known["fields"]),
            tuple(known["classes"]),
            known["splits"],
            known["fingerprint"],
        )
        whole = all((final / f"{name}.bin").stat().st_size == size for name, size in known["bytes"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if whole else None


def _classes_file(root: Path) -> str:
    path = root / "classes.txt"
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"{shown(path)} can't be read as text in UTF-8: {error}") from error


def _build(root: Path, shards: list[Path], names: list[str], sizes: list[int], part: Path) -> None:
    """Columns and index.json in `part`. Memory holds one stretch of samples at a time."""
    given = _splits_by_name(names)
    counts, fields, highest = [0] * len(shards), None, -1
    files: dict[str, Any] = {}
    text, begun, due = open(part / "text.bin", "wb"), time.monotonic(), 1.0
    try:
        columns: dict[str, array.array] = {}
        for number, shard in enumerate(shards):
            for sample in samples(shard, sizes[number]):
                if fields is None:
                    fields = sample.fields
                    columns = {n: array.array(k) for n, k in (COLUMNS | (AUDIO if sample.audio else {})).items()}
                    files |= {n: open(part / f"{n}.bin", "wb") for n in columns}
                if sample.fields != fields:
                    raise _unlike(sample, fields, shard)
                draw = hashlib.blake2b(
                    f"{names[number]}\0{sample.key}".encode("utf-8", "surrogateescape"), digest_size=4
                ).digest()
                if sample.text is not None:
                    text.write(sample.text.encode())
                highest = max(highest, -1 if sample.label is None else sample.label)
                place = sample.image or (0, 0)
                row = (number, *place, int.from_bytes(draw, "little"), sample.label or 0, text.tell())
                row += sample.audio or ()
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
                counts[number] += 1
                if len(columns["shard"]) == 1 << 16:
                    _flush(columns, files)
            if time.monotonic() - begun > due:
                print(
                    f"indexing the shards of {root}, once: {number + 1:,} of {len(shards):,}",
                    file=sys.stderr,
                    flush=True,
                )
                due += 10
        _flush(columns, files)
    finally:
        for file in (*files.values(), text):
            file.close()
    if fields and "text" in fields and not (part / "text.bin").stat().st_size:
        raise ZooError(f"the shards of {shown(root)} have no text at all: each text is empty; give texts with words")
    if sum(counts) < 2:
        raise ZooError(
            f"the shards of {shown(root)} hold {sum(counts)} pictures, and at least two are needed; members are named "
            "like 000017.jpg "
            "and 000017.cls"
        )
    splits = _write_splits(part, counts, given)
    if not splits["train"]:
        raise ZooError(
            f"no sample of {shown(root)} is left for training; give more pictures, or shards named train-*.tar"
        )
    classes = _class_names(root, highest) if "label" in fields else ()
    bytes_of = {p.stem: p.stat().st_size for p in sorted(part.glob("*.bin"))}
    mark = hashlib.sha256(json.dumps([VERSION, names, sizes, counts, classes]).encode())
    for name in bytes_of:
        with open(part / f"{name}.bin", "rb") as file:
            mark.update(hashlib.file_digest(file, "sha256").digest())
    paths.write_text(
        part / "index.json",
        json.dumps(
            {
                "counts": counts,
                "fields": fields,
                "classes": classes,
                "splits": splits,
                "bytes": bytes_of,
                "fingerprint": mark.hexdigest(),
            }
        ),
    )


def _unlike(sample: Sample, fields: tuple[str, ...], shard: Path) -> ZooError:
    odd = next(name for name in ("image", "audio", "label", "text") if (name in sample.fields) != (name in fields))
    noun = {"image": "picture", "audio": "sound"}.get(odd, odd)
    return ZooError(
        f"sample {sample.key} of {shown(shard)} has {'a' if odd in sample.fields else 'no'} {noun}, unlike those "
        "before it; all samples have to have the same fields"
    )


def _flush(columns: dict[str, array.array], files: dict) -> None:
    for name, column in columns.items():
        column.tofile(files[name])
        del column[:]


def _class_names(root: Path, highest: int) -> tuple[str, ...]:
    """The lines of classes.txt, or the numbers."""
    lines = tuple(_classes_file(root).splitlines())
    if lines and highest >= len(lines):
        raise ZooError(
            f"{shown(root / 'classes.txt')} names {len(lines):,} classes and there is a label {highest:,}; add a line "
            "for each class, "
            "or remove it"
        )
    return lines or tuple(map(str, range(highest + 1)))


def _splits_by_name(names: list[str]) -> list[str] | None:
    """The split that each shard's name or folder says (train-0001.tar, val/0001.tar); None where none says one."""

    def of(name: str) -> str | None:
        words = (re.match(r"[a-z]*", part.lower())[0] for part in name.split("/"))
        return next((SPLITS[word] for word in words if word in SPLITS), None)

    found = [of(name) for name in names]
    if "train" not in found:
        return None
    if None in found:
        raise ZooError(
            f"some shards are named for a split and {shown(names[found.index(None)])} isn't; begin its name with "
            "train, val or test"
        )
    return found


def _write_splits(part: Path, counts: list[int], given: list[str] | None) -> dict[str, int]:
    """Rows of each split, by the shards' names; for one that is absent a tenth, at most 10,000, of the others by a hash
    of name and key.
    """
    import numpy as np

    draw = np.memmap(part / "draw.bin", np.uint32, mode="r")
    shard = np.memmap(part / "shard.bin", np.int32, mode="r")
    order = ("train", "validation", "test")
    code = np.array([order.index(split) for split in given or ["train"] * len(counts)], np.uint8)
    absent = [k for k in (1, 2) if k not in code]
    pool = sum(count for count, k in zip(counts, code, strict=True) if k == 0)
    share = min(0.1, HELD_BACK / max(1, pool))
    bounds = [share * (place + 1) * 2**32 for place in range(len(absent))]
    if pool <= 1000:  # few enough that chance could leave a split empty
        least = np.sort(draw[code[shard] == 0])
        bounds = [least[min(len(least) - 1, (place + 1) * max(1, round(share * pool)))] for place in range(len(absent))]
    written = dict.fromkeys(order, 0)
    files = [open(part / f"{name}.bin", "wb") for name in order]
    try:
        for start in range(0, len(draw), 1 << 20):
            split = code[shard[start : start + (1 << 20)]]
            free, value = split == 0, draw[start : start + (1 << 20)]
            for k, bound in reversed(list(zip(absent, bounds, strict=True))):
                split[free & (value < bound)] = k
            for k, name in enumerate(order):
                rows = np.flatnonzero(split == k) + start
                rows.astype(np.int64).tofile(files[k])
                written[name] += len(rows)
    finally:
        for file in files:
            file.close()
    return written

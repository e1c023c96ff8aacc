"""Raw files of the named data sets: where they come from, how they are checked, where they lie.

A set lies in `<home>/data/NAME`: `raw/` holds its files as they are after unpacking, `files.json` the size
and sha256 of each and one digest of them all, `decoded/` what datasets.py made of them. The folder appears by
one rename, under a lock, so that a reader sees all of it or nothing.

The digest is the sha256 of `sha256sum`'s own output over the files in order of their names, so that it doesn't
matter which mirror or compression brought them. It is pinned here for fashion-mnist and emoji, which were
measured, and for CIFAR-10, of which several have published the sha256 of every file beside the md5 that
torchvision pins. CIFAR-100, STL-10 and Imagenette are published as one archive each, and known by its sha256;
of these nothing is taken unpacked. For all, the sha256 of what arrived are kept (`files.json`), and read again
whenever the set is decoded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from zoo import paths
from zoo.data.sources import fetch
from zoo.errors import ZooError

log = logging.getLogger(__name__)

LOCK_SECONDS = 2 * fetch.LONGEST  # a holder is given up by its own limits well before


@dataclass(frozen=True)
class Source:
    """How one set's files are known and got.

    wanted         path inside what brings them -> path in the raw folder
    count, limit   how many files there have to be, and how many bytes they can have together
    ways           how to get them, in order; each takes an empty folder and returns one to gather from
    advice         what to install when no way is open
    digest         the pin of what is read
    archive        where that isn't known, the name of the one archive that may bring it, and its sha256
    """

    name: str
    wanted: fetch.Wanted
    count: int
    limit: int
    ways: tuple[Callable[[Path], Path], ...]
    advice: str
    digest: str | None = None
    archive: tuple[str, str] | None = None


def folder_of(name: str) -> Path:
    return paths.home() / "data" / name


def offline() -> bool:
    return paths.offline()


def ensure(source: Source, download: bool = True) -> Path:
    """The verified raw folder of a set, got first if it isn't there or is damaged.

    Raises ZooError, with the command that helps, when it has to be got and may not or can't be.
    """
    try:
        verify(source)
    except FileNotFoundError:
        pass
    except ZooError as damage:
        log.warning("%s; getting %s again", damage, source.name)
        try:
            return get(source, download=download)
        except ZooError as error:
            raise ZooError(f"{damage}, and another copy couldn't be got: {error}") from error
    else:
        return folder_of(source.name) / "raw"
    return get(source, download=download)


def get(source: Source, given: Path | None = None, download: bool = True) -> Path:
    """Get a set's files by the first way that is open, or from `given`; return the raw folder."""
    data = paths.home() / "data"
    with locked(source.name):
        if given is None:
            try:  # somebody may have got it while we waited
                verify(source)
                return folder_of(source.name) / "raw"
            except (FileNotFoundError, ZooError):
                pass
        for left in data.glob(f".{source.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)  # of a process that died; we hold the lock
        work = Path(tempfile.mkdtemp(dir=data, prefix=f".{source.name}.", suffix=".part"))
        try:
            (work / "set").mkdir()
            if given is None:
                _try_ways(source, work, download)
            else:
                _unpack(source, given, work / "set", given.name)
            _install(source, work / "set")
        except OSError as error:
            raise paths.explain(error, work, source.limit) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder_of(source.name) / "raw"


def _try_ways(source: Source, work: Path, download: bool) -> None:
    tried = []
    for number, way in enumerate(source.ways):
        if not getattr(way, "local", False):
            if offline() or not download:
                why = "ZOO_OFFLINE is set" if offline() else "download=False"
                lacks = "is damaged" if folder_of(source.name).exists() else "isn't there"
                raise ZooError(
                    f"{folder_of(source.name)} {lacks} and {why}; with a network run "
                    f"`zoo data get {source.name}`, without one `zoo data get {source.name} --from FILE`"
                )
        client = work / f"way{number}"
        client.mkdir()
        try:
            _unpack(source, way(client), work / "set", way.label)
            return
        except (fetch.Unreachable, ZooError) as error:
            tried.append(f"{way.label}: {error}")
        shutil.rmtree(client, ignore_errors=True)
        shutil.rmtree(work / "set")
        (work / "set").mkdir()
    raise ZooError(
        f"{source.name} couldn't be got ({'; '.join(tried)}); {source.advice}, or bring its files yourself "
        f"with `zoo data get {source.name} --from FILE`"
    )


def _unpack(source: Source, given: Path, folder: Path, label: str) -> None:
    """Gather the files into folder/raw, check and record them; raises ZooError."""
    if source.archive is not None:
        given = _archive_in(given, source.name, *source.archive)
    (folder / "raw").mkdir()
    found = fetch.gather(given, source.wanted, folder / "raw", source.limit)
    if len(found) != source.count:
        raise ZooError(
            f"{given} holds {len(found)} of the {source.count} files of {source.name}; if several archives "
            "hold them, put these into one folder and give that"
        )
    files = hash_files(folder / "raw")
    if source.digest is not None and digest_of(files) != source.digest:
        raise ZooError(
            f"the files in {given} aren't those of {source.name} (sha256 {digest_of(files)[:12]}, not "
            f"{source.digest[:12]}): they are damaged or of another version"
        )
    record = {"name": source.name, "from": label, "digest": digest_of(files), "files": files}
    paths.write_text(folder / "files.json", json.dumps(record, indent=0))


def _archive_in(given: Path, name: str, archive: str, pinned: str) -> Path:
    """The archive that is given, or that lies in a folder, if it is the one of that sha256; raises ZooError."""
    found = given / archive if given.is_dir() else given
    if not found.is_file():
        raise ZooError(
            f"{given} holds no {archive}; {name} is known by the sha256 of that archive, so give that instead of "
            "unpacked files, which nothing could check"
            if given.is_dir()
            else f"{given} is neither a file nor a folder"
        )
    with open(found, "rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    if sha != pinned:
        raise ZooError(
            f"{found} isn't the {archive} that is known (sha256 {sha[:12]}, not {pinned[:12]}): it is damaged or "
            "of another version"
        )
    return found


def _install(source: Source, fresh: Path) -> None:
    fresh.chmod(0o755)
    target = folder_of(source.name)
    if target.exists():  # damaged, or to be replaced by --from
        os.replace(target, fresh.parent / "old")
    os.replace(fresh, target)
    paths.sync_folder(target.parent)


def hash_files(raw: Path) -> dict[str, list]:
    """{relative name: [bytes, sha256]} of every file below a folder, in order of the names."""
    files = {}
    for path in sorted(raw.rglob("*"), key=lambda path: path.relative_to(raw).as_posix()):
        if path.is_file():
            with open(path, "rb") as file:
                sha = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(raw).as_posix()] = [path.stat().st_size, sha]
    return files


def digest_of(files: dict[str, list]) -> str:
    lines = "".join(f"{sha}  {name}\n" for name, (_, sha) in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def recorded_digest(source: Source) -> str | None:
    """The installed set's digest as recorded, its files unread; None when it isn't the pinned one."""
    try:
        digest = json.loads((folder_of(source.name) / "files.json").read_text())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if source.digest in (None, digest) else None


def verify(source: Source) -> None:
    """Read every raw file and compare. Raises FileNotFoundError: no such set; ZooError: it is damaged."""
    folder = folder_of(source.name)
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        record = json.loads((folder / "files.json").read_text())
        known = {name: list(entry) for name, entry in record["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ZooError(f"{folder / 'files.json'} can't be read") from None
    found = hash_files(folder / "raw")
    for name in sorted(known.keys() | found.keys()):
        if known.get(name) != found.get(name):
            both = "has been changed" if name in known else "doesn't belong there"
            raise ZooError(f"{folder / 'raw' / name} {both if name in found else 'is missing'}")
    if source.digest is not None and digest_of(found) != source.digest:
        raise ZooError(f"{folder} isn't the version of {source.name} that this package knows")


def locked(name: str) -> AbstractContextManager:
    """The lock of a set's folder, across processes and threads, as a context manager."""
    import filelock  # 30 ms that listing data sets needn't pay

    data = paths.home() / "data"
    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(data / f".{name}.lock", timeout=LOCK_SECONDS)
        return lock.acquire()
    except filelock.Timeout:
        raise ZooError(
            f"another process has held {data / f'.{name}.lock'} for too long; end it and try again"
        ) from None
    except OSError as error:
        raise paths.explain(error, data, 0) from error


# What each set's files are called, in whatever brings them


def _idx_name(path: str) -> str | None:
    match = re.fullmatch(r"(?:.*/)?((?:train|t10k)-(?:images-idx3|labels-idx1)-ubyte)(?:\.gz)?", path)
    return match[1] if match else None


def _emoji_name(path: str) -> str | None:
    match = re.fullmatch(r"(?:.*/)?img/(google|twitter)/64/([0-9a-f]{4,5}(?:-[0-9a-f]{4,5})*\.png)", path)
    if match:
        return f"{match[1]}/{match[2]}"
    return "emoji.json" if path.rsplit("/", 1)[-1] == "emoji.json" else None


def _named(pattern: str) -> fetch.Wanted:
    def wanted(path: str) -> str | None:
        match = re.fullmatch(rf"(?:.*/)?({pattern})", path)
        return match[1] if match else None

    return wanted


def _torchvision(name: str, kind: str, pattern: str, count: int, limit: int, arguments: str = "", **pins) -> Source:
    return Source(
        name=name,
        wanted=_named(pattern),
        count=count,
        limit=limit,
        ways=(fetch.from_torchvision(f"datasets.{kind}(root, {arguments}download=True)"),),
        advice="connect to the network and try again",
        **pins,
    )


DEBIAN = Path("/usr/share/datasets/fashion-mnist")

SOURCES = {
    source.name: source
    for source in (
        Source(
            name="fashion-mnist",
            wanted=_idx_name,
            count=4,
            limit=60_000_000,
            ways=(
                fetch.from_folder(DEBIAN),
                fetch.from_torchvision("datasets.FashionMNIST(root, download=True)"),
                fetch.from_apt("dataset-fashion-mnist"),
            ),
            advice="on Debian or Ubuntu `apt-get install dataset-fashion-mnist` brings it",
            # Measured on Debian's files; with the gzip headers of the first publication put back, these have
            # the four md5 that torchvision pins, so both bring these bytes
            digest="d0a13531871adf77cb1d75902c9d2a2fdf613723748f5e8c24e0169faf064dc8",
        ),
        Source(
            name="emoji",
            wanted=_emoji_name,
            count=2 * 3786 + 1,
            limit=64_000_000,
            ways=(fetch.from_npm("emoji-datasource-google@16.0.0", "emoji-datasource-twitter@16.0.0"),),
            advice="install npm (`apt-get install npm`, or Node.js for your system)",
            digest="6d6c6a1e2e6e1728e9dc4efe4b6985ec2759527a698546e01dee79a51973e8ae",
        ),
        _torchvision(
            "cifar10",
            "CIFAR10",
            r"cifar-10-batches-py/(?:data_batch_[1-5]|test_batch|batches\.meta)",
            count=7,
            limit=200_000_000,
            digest="29b08ea2c78e847a426ab274a57a0497a9b95e437a53d0d9f80c14c4314639a9",
        ),
        _torchvision(
            "cifar100",
            "CIFAR100",
            r"cifar-100-python/(?:train|test|meta)",
            count=3,
            limit=200_000_000,
            archive=(
                "cifar-100-python.tar.gz",
                "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            ),
        ),
        _torchvision(
            "stl10",
            "STL10",
            r"stl10_binary/(?:(?:train|test)_[Xy]\.bin|unlabeled_X\.bin|class_names\.txt)",
            count=6,
            limit=3_200_000_000,
            archive=("stl10_binary.tar.gz", "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"),
        ),
        _torchvision(
            "imagenette",
            "Imagenette",
            r"imagenette2-160/(?:train|val)/n\d{8}/\w+\.JPEG",
            count=13_394,
            limit=400_000_000,
            arguments="size='160px', ",
            archive=(
                "imagenette2-160.tgz",
                "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5",
            ),
        ),
    )
}

"""Hubs: a folder with an index.json and one folder per checkpoint, on this machine, on a web server, or one repository
of Hugging Face.

Whatever brought the bytes, a checkpoint is taken only when the size and sha256 of its card are what the index says, and
those of its files what the card says. It then lies in a cache under the sha256 of its card. Nothing here imports torch,
and nothing touches the network unless the hub's address says so; ZOO_OFFLINE=1 refuses that too.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from zoo import card as cards
from zoo.card import check_file, read_card
from zoo.errors import ZooError, nearest
from zoo.hub import page
from zoo.hub.carriers import Carrier, Folder, open_carrier
from zoo.hub.index import INDEX, LARGEST, entry_of, index_text, parse_index
from zoo.paths import (
    expanded,
    explain,
    home,
    offline,
    remove,
    shipped,
    sync_folder,
    write_bytes,
    write_text,
)
from zoo.strict import Missing

LONGEST_LOCK = 600.0  # seconds that another process may take to pull the same checkpoint


# ---- finding -------------------------------------------------------------------------------------


def find(name_or_dir: str | Path, hub: str | Path | None = None) -> Path:
    """A verified checkpoint folder on this machine: a checkpoint's own folder, a run's folder, or a name in the hub,
    which is pulled.

    Raises ZooError for a folder without a checkpoint, an unknown name (with the nearest ones), and damage.
    """
    text = str(name_or_dir)
    local = None if text.startswith("hf://") else local_checkpoint(expanded(text))
    if local is not None:
        read_card(local)
        return local
    if expanded(text).exists() and not cards.SLUG.fullmatch(text):
        raise ZooError(
            f"{text} holds no checkpoint: neither {cards.FILE} nor checkpoint/{cards.FILE} is in it; "
            "if a run was cut short, go on with it by --resume"
        )
    if not text.startswith("hf://") and not cards.SLUG.fullmatch(text):
        raise ZooError(
            f"{text} is neither a folder nor the name of a checkpoint; `zoo list checkpoints` shows the names"
        )
    return pull(text, hub)


def local_checkpoint(path: Path) -> Path | None:
    """The checkpoint folder that `path` is or, being a run's folder, holds; else None."""
    try:
        return next((folder for folder in (path, path / "checkpoint") if (folder / cards.FILE).is_file()), None)
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise ZooError(f"{str(path)[:200]} can't be read: {error.strerror}") from error


def list_checkpoints(hub: str | Path | None = None, pattern: str = "*") -> list[dict]:
    """What the hub says of its checkpoints, by name: name, summary, task, backbone, data, parameters, bytes, knn (%, or
    None), license.
    """
    carrier = _open(hub)
    if carrier is None:
        return []
    entries = _index(carrier)
    return [
        {"name": name, **{key: value for key, value in entries[name].items() if key != "card"}}
        for name in sorted(entries)
        if fnmatch.fnmatchcase(name, pattern)
    ]


def local_card(name: str, hub: str | Path | None = None) -> dict | None:
    """The card of a checkpoint in a hub that is a folder; None where there is no such, or the hub is elsewhere. Raises
    ZooError for a damaged one.
    """
    carrier = _open(hub)
    return (
        read_card(carrier.folder / name)
        if isinstance(carrier, Folder) and carrier.folder.is_dir() and name in _index(carrier)
        else None
    )


def _open(hub: str | Path | None) -> Carrier | None:
    """The hub that is asked for, else that of ZOO_HUB, else the one that came with the zoo, else None."""
    address = hub or os.environ.get("ZOO_HUB") or shipped("hub")
    return None if address is None else open_carrier(address)


# ---- the index -----------------------------------------------------------------------------------


def _index(carrier: Carrier, wanted: str | None = None) -> dict[str, dict]:
    """Entries by name. What came over a network is remembered, and serves when there is none. Raises ZooError."""
    memory = cache() / "indexes" / f"{hashlib.sha256(carrier.address.encode()).hexdigest()}.json"
    if carrier.remote and offline():
        if not memory.is_file():
            once = (
                f"; with a network, run once:  {_command(carrier, wanted)}"
                if wanted
                else "; name a hub that is a folder, or unset it"
            )
            raise ZooError(
                f"{carrier.address} was never read on this machine and ZOO_OFFLINE (or --offline) is set{once}"
            )
        return parse_index(memory.read_bytes(), str(memory))
    if carrier.single:
        text = carrier.read(cards.FILE, cards.LARGEST)
        card = cards.parse(text, f"{cards.FILE} of {carrier.address}")
        data = index_text({card["name"]: entry_of(card, text)}).encode()
    else:
        try:
            data = carrier.read(INDEX, LARGEST)
        except Missing:
            if isinstance(carrier, Folder) and carrier.folder == shipped("hub"):
                return {}  # a checkout whose hub has nothing in it yet
            raise ZooError(
                f"{carrier.address} is not a hub: it has no {INDEX}; `zoo push CHECKPOINT --to FOLDER` makes one"
            ) from None
    entries = parse_index(data, f"{carrier.address}/{INDEX}")
    with contextlib.suppress(
        ZooError, OSError
    ):  # a cache that can't be read or written is no reason not to read the hub
        if carrier.remote and not (memory.is_file() and memory.read_bytes() == data):
            write_bytes(memory, data)
    return entries


# ---- pulling -------------------------------------------------------------------------------------


def cache() -> Path:
    """The folder of pulled checkpoints, each under the sha256 of its card."""
    return home() / "hub"


def pull(name: str, hub: str | Path | None = None) -> Path:
    """Bring a checkpoint into the cache and return its folder; one that is there and whole is not brought again.

    `name` may itself be hf://organisation/name@revision. Two processes may pull the same one. Raises ZooError for an
    unknown name (with the nearest ones) and whenever a size or sha256 isn't what it should be; the cache then holds
    nothing of it.
    """
    carrier = open_carrier(name) if name.startswith("hf://") else _open(hub)
    if carrier is None:
        raise ZooError(
            f"{name} can't be looked up: there is no hub; give --hub or set ZOO_HUB to a folder or an https:// address"
        )
    entries = _index(carrier, name)
    if name.startswith("hf://"):
        name = next(iter(entries))
    if name not in entries:
        raise ZooError(f"{carrier.address} has no checkpoint {name}{nearest(name, entries)}")
    stamp = entries[name]["card"]
    folder = cache() / stamp["sha256"]
    if _is_whole(folder):
        return folder
    if carrier.remote and offline():
        raise ZooError(
            f"{name} of {carrier.address} is not whole in the cache and ZOO_OFFLINE (or --offline) is set; with a "
            "network, run once:  "
            f"{_command(carrier, name)}"
        )
    with _lock(folder, name):
        if not _is_whole(folder):  # nobody else has brought it in the meantime
            _bring(carrier, name, stamp, folder)
    return folder


def _command(carrier: Carrier, name: str) -> str:
    return f"zoo pull {carrier.address}" if carrier.single else f"zoo pull {name} --hub {carrier.address}"


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the cache is what its name, the sha256 of its card, promises."""
    return folder.is_dir() and not _damage(folder, folder.name)


def _damage(folder: Path, digest: str | None = None) -> list[str]:
    """What is wrong with a checkpoint folder, a sentence each: its card (against `digest`, if given), its files, and
    files beyond those.
    """
    try:
        text = cards.read_text(folder)
        if digest is not None and hashlib.sha256(text).hexdigest() != digest:
            return [f"{folder / cards.FILE} is not the card that it was (another sha256); pull it again"]
        card = cards.parse(text, str(folder / cards.FILE))
    except ZooError as error:
        return [str(error)]
    problems = []
    for entry in card["files"]:
        try:
            check_file(folder, entry)
        except ZooError as error:
            problems.append(str(error))
    problems += [f"{folder / extra} is not in the card of its checkpoint" for extra in _extra(folder, card)]
    return problems


def _extra(folder: Path, card: dict) -> list[str]:
    """Names in a checkpoint folder that its card doesn't list. Hidden ones, which editors and file managers leave,
    don't count.
    """
    listed = {entry["path"] for entry in card["files"]}
    folders = {path.rpartition("/")[0] for path in listed} - {""}
    known = {cards.FILE, cards.README} | listed | folders
    there = [
        *folder.iterdir(),
        *(path for name in folders if (folder / name).is_dir() for path in (folder / name).iterdir()),
    ]
    names = [path.relative_to(folder).as_posix() for path in there if not path.name.startswith(".")]
    return sorted(name for name in names if name not in known)


@contextlib.contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    """Only one process at a time brings a checkpoint. A lock that a dead process held is free."""
    import filelock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f".{folder.name}.lock"), timeout=LONGEST_LOCK):
            yield
    except filelock.Timeout:
        raise ZooError(
            f"another process has been pulling {name} for {LONGEST_LOCK / 60:.0f} minutes; end it, then try again"
        ) from None
    except OSError as error:
        raise explain(error, folder, 0) from error


def _bring(carrier: Carrier, name: str, stamp: dict, folder: Path) -> None:
    """Card and files into a folder beside `folder`, each checked and synced, then renamed. What broke off is gone on
    with.
    """
    prefix = "" if carrier.single else f"{name}/"
    text = carrier.read(f"{prefix}{cards.FILE}", stamp["size"])
    if hashlib.sha256(text).hexdigest() != stamp["sha256"]:
        raise ZooError(
            f"the {cards.FILE} of {name} is not the one that the index of {carrier.address} describes (another "
            "sha256); "
            "if somebody is just pushing it, try again"
        )
    card = cards.parse(text, f"{cards.FILE} of {name}")
    if card["name"] != name:
        raise ZooError(f"{carrier.address} has a checkpoint called {card['name']} under the name of {name}")
    staging = folder.with_name(f".{folder.name}.part")
    staging.mkdir(exist_ok=True)
    _check_space(staging, sum(entry["size"] for entry in card["files"]), name)
    for entry in card["files"]:
        _bring_file(carrier, f"{prefix}{entry['path']}", staging, entry)
    for extra in set(os.listdir(staging)) - {entry["path"].partition("/")[0] for entry in card["files"]}:
        remove(staging / extra)  # a carrier's own notes
    write_text(staging / cards.README, page.render(card))
    write_bytes(staging / cards.FILE, text)
    for path in (path for path in staging.rglob("*") if path.is_file()):
        path.chmod(0o444)  # it lies under a checksum: a copy to work on is made with cp
    if folder.exists():  # and damaged, or we wouldn't be here
        remove(folder)
    os.replace(staging, folder)
    sync_folder(folder.parent)


def _bring_file(carrier: Carrier, path: str, staging: Path, entry: dict) -> None:
    part = staging / entry["path"]
    part.parent.mkdir(exist_ok=True)  # a tower's folder
    for fresh in (False, True):
        if fresh:
            part.unlink(missing_ok=True)
        resumed = part.exists()
        if resumed:
            part.chmod(0o644)  # of a pull that was killed just before its end
        carrier.fetch(path, part, entry["size"])
        try:
            check_file(staging, entry)
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            return
        except ZooError:
            part.unlink(missing_ok=True)
            if not resumed:  # what was left of an earlier try may have been another file's beginning
                raise ZooError(
                    f"{path} of {carrier.address} is not the file that its card describes (another size or sha256); "
                    "nothing of it was kept"
                ) from None


def _check_space(folder: Path, size: int, name: str) -> None:
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if free < size:
        raise ZooError(
            f"{name} needs {size:,} bytes in {folder.parent} and {free:,} are free; make room or set ZOO_HOME"
        )


# ---- pushing -------------------------------------------------------------------------------------


# ---- verifying -----------------------------------------------------------------------------------


def verify(target: str | Path | None = None) -> list[str]:
    """Hash everything again in a hub that is a folder, a checkpoint's or a run's folder, or (None) the cache.

    Returns what is wrong, a sentence each; an empty list is good news. Raises ZooError for a target that is none of
    these.
    """
    if target is None:
        folders = sorted(path for path in cache().glob("*") if re.fullmatch("[0-9a-f]{64}", path.name))
        return [problem for folder in folders for problem in _damage(folder, folder.name)]
    carrier = open_carrier(target)
    if not isinstance(carrier, Folder):
        raise ZooError(
            f"{target} can't be verified from here; `zoo pull` checks everything it brings, and `zoo verify` the cache"
        )
    if (carrier.folder / INDEX).exists():
        return _verify_hub(carrier)
    folder = local_checkpoint(carrier.folder)
    if folder is None:
        raise ZooError(f"{target} is neither a hub ({INDEX}) nor a checkpoint ({cards.FILE})")
    return _damage(folder)


def _verify_hub(carrier: Folder) -> list[str]:
    entries = _index(carrier)
    problems = []
    for name, entry in sorted(entries.items()):
        found = _damage(carrier.folder / name, entry["card"]["sha256"])
        if (carrier.folder / name).is_symlink():
            found = [f"{name} is a link, which no pull follows; put the folder itself there"]
        if not found:
            text = (carrier.folder / name / cards.FILE).read_bytes()
            card = cards.parse(text, name)
            found = [
                f"{name}: {key} in {INDEX} isn't what its card says; push it again"
                for key, value in entry_of(card, text).items()
                if entry[key] != value
            ] + ([] if card["name"] == name else [f"{name} is called {card['name']} in its card"])
        problems += found
    strays = (
        path.name
        for path in carrier.folder.iterdir()
        if (path / cards.FILE).exists() and path.name not in entries and not path.name.startswith(".")
    )
    return problems + [
        f"{carrier.folder / name} is a checkpoint that {INDEX} doesn't list; push it" for name in sorted(strays)
    ]

"""Push: a checkpoint into a hub, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from zoo import card as cards
from zoo.card import check_file, check_name, read_card
from zoo.errors import ZooError
from zoo.hub import page
from zoo.hub.carriers import HF, Folder, open_carrier
from zoo.hub.hub import _damage, _extra, _index, local_checkpoint
from zoo.hub.index import INDEX, entry_of, index_text
from zoo.paths import (
    beside,
    clear_leftovers,
    expanded,
    explain,
    offline,
    swap,
    write_bytes,
    write_text,
)


def push(folder: str | Path, to: str | Path, name: str | None = None, replace: bool = False) -> str:
    """Publish a checkpoint (or a run's) in a hub that is a folder, or as a repository of Hugging Face; returns where it
    is.

    Args:
        folder: the checkpoint. Exactly the files of its card are pushed, and they have to be whole.
        to: a folder, which becomes a hub if it is new or empty; file:///...; or hf://organisation/name, where one may
            write.
        name: its name in the hub; by default the one in its card.
        replace: put it in the place of another checkpoint of that name.

    Raises ZooError for a card without a licence, files that don't match their card, files beyond it, and a name that is
    taken.
    """
    source = local_checkpoint(expanded(folder))
    if source is None:
        raise ZooError(f"{folder} holds no checkpoint: it has no {cards.FILE}")
    card = cards.public(read_card(source))
    if extra := _extra(source, card):
        raise ZooError(f"{source / extra[0]} is not in the card of this checkpoint; move it elsewhere, then push")
    if card["license"] is None:
        raise ZooError(
            f"{source} has no licence yet, and nobody may use it without; decide on one and push with it, as by "
            "--license Apache-2.0, or from Python zoo.checkpoint.write.update_card(folder, license=...) first"
        )
    if name is not None:
        card["name"] = check_name(name, "the name in the hub")
    if str(to).startswith("hf://"):
        return _push_hf(source, card, str(to), replace)
    carrier = open_carrier(to)
    if not isinstance(carrier, Folder):
        raise ZooError(
            f"{to} can't be pushed to; push to a folder and copy that to the server, or to hf://organisation/name"
        )
    return _push_folder(source, card, carrier, replace)


def _stage(source: Path, card: dict, target: Path) -> bytes:
    """The files of `card`, itself and its README into the empty folder `target`, checked again as copies. Returns the
    text of zoo.json.
    """
    for entry in card["files"]:
        (target / entry["path"]).parent.mkdir(exist_ok=True)  # a tower's folder
        Folder(source).fetch(entry["path"], target / entry["path"], entry["size"])
        check_file(target, entry)
        with open(target / entry["path"], "rb") as file:
            os.fsync(file.fileno())
    text = cards.dump(card).encode()
    write_text(target / cards.README, page.render(card))
    write_bytes(target / cards.FILE, text)
    return text


def _push_folder(source: Path, card: dict, carrier: Folder, replace: bool) -> str:
    hub, name = carrier.folder, card["name"]
    try:
        hub.mkdir(parents=True, exist_ok=True)
        with _writing(hub):
            clear_leftovers(hub, INDEX)
            if not (hub / INDEX).exists():
                if others := sorted(path.name for path in hub.iterdir() if not path.name.startswith(".")):
                    raise ZooError(
                        f"{hub} is not a hub: it holds {others[0]} and no {INDEX}; give a new or empty folder"
                    )
                write_text(
                    hub / INDEX, index_text({})
                )  # a hub before it holds anything, for the next push if this one is killed
            return _publish(source, card, carrier, hub / name, replace)
    except OSError as error:
        raise explain(error, hub / name, sum(entry["size"] for entry in card["files"])) from error


def _publish(source: Path, card: dict, carrier: Folder, target: Path, replace: bool) -> str:
    entries = _index(carrier)
    with beside(target) as staging:
        entry = entry_of(card, _stage(source, card, staging))
        if target.exists() and target.name not in entries and not (target / cards.FILE).is_file():
            raise ZooError(
                f"{target} is no checkpoint, and pushing under its name would remove it; push under another --name"
            )
        if _damage(
            target, entry["card"]["sha256"]
        ):  # else the very same checkpoint is there, perhaps of a push that was cut short
            if (target.exists() or target.name in entries) and not replace:
                raise ZooError(
                    f"{carrier.address} has another checkpoint called {target.name}; push under another --name, or "
                    "with --replace"
                )
            staging.chmod(0o755)
            swap(staging, target)
        if entries.get(target.name) != entry:
            write_text(carrier.folder / INDEX, index_text(entries | {target.name: entry}))
    return str(target)


@contextlib.contextmanager
def _writing(hub: Path) -> Iterator[None]:
    """One writer of a hub at a time. The lock is on the folder itself and leaves no file in what gets published."""
    handle = os.open(hub, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _push_hf(source: Path, card: dict, to: str, replace: bool) -> str:
    match = HF.fullmatch(to)
    if match is None or ".." in to:
        raise ZooError(
            f"{to} is no address to push to; it looks like hf://organisation/name or hf://organisation/name@branch"
        )
    if offline():
        raise ZooError(f"{to} can't be pushed to while ZOO_OFFLINE is set")
    import huggingface_hub

    repository, revision = f"{match[1]}/{match[2]}", match[3]
    api = huggingface_hub.HfApi()
    with tempfile.TemporaryDirectory() as staging:
        _stage(source, card, Path(staging))
        try:
            api.create_repo(repository, exist_ok=True)
            if not replace and api.file_exists(repository, cards.FILE, revision=revision):
                raise ZooError(f"{to} holds a checkpoint already; push to another repository, or with --replace")
            api.upload_folder(
                repo_id=repository,
                folder_path=staging,
                revision=revision,
                commit_message=f"{card['name']}",
                delete_patterns=["*"] if replace else None,
            )
        except ZooError:
            raise
        except Exception as error:  # the client raises its own and its transport's errors, of no common kind
            raise ZooError(f"{to} can't be pushed to: {' '.join(str(error).split())[:300]}") from error
    return to

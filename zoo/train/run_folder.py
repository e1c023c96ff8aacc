"""Which folder a run gets, and that no two processes write into one at once."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sys
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from zoo import recipe as recipes
from zoo.data.folder.cache import BAD_SAMPLES
from zoo.errors import ZooError
from zoo.machine.resumable import LAST, PREVIOUS
from zoo.paths import clear_leftovers, explain, successors

RECIPE, CHECKPOINT, FACTS = "recipe.yaml", "checkpoint", "run.json"
WRITTEN = (LAST, PREVIOUS, CHECKPOINT, FACTS, RECIPE, BAD_SAMPLES, "metrics.csv")  # what a run replaces
FREE_KEYS = {
    "trainer.devices",
    "trainer.nodes",
    "trainer.timeout",
}  # of which a resumed run may have others: the product of the first two is run.json's


def differences(folder: Path, resolved: dict) -> Iterator[tuple[str, Any, Any]]:
    """(key, what the run in `folder` was begun with, what the recipe says now) of each that differs and may not. Raises
    ZooError as `resolve` does.
    """
    was, now = (dict(recipes.flat(r)) for r in (recipes.resolve(recipes.read(folder / RECIPE), {}), resolved))
    for key in sorted((was.keys() | now.keys()) - FREE_KEYS):
        if was.get(key) != now.get(key):
            yield key, was.get(key), now.get(key)


def begun_with(folder: Path, resolved: dict, given: Set[str], lowers: Set[str]) -> dict:
    """The recipe, with all but the `given` keys as the run in `folder` was begun with: an older version may have had
    other defaults. So with the keys that `lowers` names (batch size, precision) where the data or the machine had
    lowered what the recipe says.
    """
    with contextlib.suppress(ZooError):  # no recipe there, or one that can't be read, as is said later
        was, now = dict(recipes.flat(recipes.resolve(recipes.read(folder / RECIPE)))), dict(recipes.flat(resolved))
        lowered = _lowered(folder)
        given = given - {key for key in lowers if key in lowered and lowered[key] == now[key]}
        return recipes.resolve(
            resolved, _from_source(was, now) | {key: was[key] for key in now.keys() & was.keys() - given}
        )
    return resolved


def _from_source(was: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Keys that a run had from the weights it started from, and from the same weights would have again. The source
    itself isn't read: the run's state holds the weights, so a source that is gone or has changed doesn't matter.
    """
    filled: dict[str, Any] = {}
    for key in was.keys() & now.keys():
        if key.startswith(recipes.OPEN) and key.endswith(f".{recipes.WEIGHTS}") and was[key] == now[key]:
            group = key.removesuffix(recipes.WEIGHTS)
            filled |= {k: v for k, v in was.items() if k.startswith(group) and k not in now}
    if filled and now["data.size"] is None:
        filled["data.size"] = was["data.size"]
    return filled


def parent_of(folder: Path) -> str | None:
    """What the card of a run says of the weights that the run started from; None where it started from none."""
    parents = facts_of(folder / FACTS).get("parents", {})
    several = len(parents) > 1
    return "; ".join(f"{tower}: {text}" if several else text for tower, text in parents.items()) or None


def facts_of(known: Path) -> dict:
    """What a run was begun with besides its recipe. Raises ZooError where that can't be told, for then nothing says
    that it goes on as it was.
    """
    try:
        facts = json.loads(known.read_text())
    except (OSError, ValueError) as error:
        raise ZooError(
            f"{known} can't be read ({error}), so nobody can tell what the run was begun with; put it back, or start "
            "a new run with --out"
        ) from error
    if not isinstance(facts, dict):
        raise ZooError(f"{known} isn't what a run writes there; put it back, or start a new run with --out")
    return facts


def _lowered(folder: Path) -> dict[str, Any]:
    """What the recipe said of each key that the data or the machine lowered when the run was begun."""
    try:
        lowered = facts_of(folder / FACTS).get("lowered", {})
    except ZooError:  # which is said when the facts themselves are asked for
        return {}
    return lowered if isinstance(lowered, dict) else {}


def claim(folder: Path, resolved: dict, resume: bool, alone: bool | None) -> None:
    """Raises ZooError unless the run of `resolved` may write into `folder`, of which `held` has said who is in it."""
    if alone is False:
        raise ZooError(f"another process is training in {folder}; wait until it has ended, or add --out ANOTHER-FOLDER")
    if not resume:
        if is_free(folder, alone):
            return
        if not _is_run(folder):
            name = next(name for name in WRITTEN if (folder / name).exists())
            raise ZooError(
                f"{folder} holds no run, but {name}, which a run would replace; move it away, or add --out "
                "ANOTHER-FOLDER"
            )
        raise ZooError(f"{folder} holds a run already; add --resume to go on with it, or --out ANOTHER-FOLDER")
    if not (folder / RECIPE).is_file():
        raise ZooError(f"{folder} holds no run to resume; leave out --resume to start one")
    for key, was, now in differences(folder, resolved):
        raise ZooError(
            f"{folder} was begun with {key} {was!r}, and the recipe now says {now!r}; resume it unchanged, or start a "
            "new run with --out"
        )
    clear_leftovers(folder)


def is_free(folder: Path, alone: bool | None) -> bool:
    """Whether a run can begin in `folder`: none was, or one that ended before it saved anything. Of that, only who is
    `alone` can be sure.

    What has the name of something that a run saves is nobody's to replace, whether there is a recipe beside it or not.
    """
    if alone is False or any((folder / name).exists() for name in (LAST, PREVIOUS, CHECKPOINT)):
        return False
    return alone is True if _is_run(folder) else not any((folder / name).exists() for name in WRITTEN)


def _is_run(folder: Path) -> bool:
    """Whether a run was begun in `folder`: what it writes first is there, and is such."""
    try:
        return facts_of(folder / FACTS).keys() >= {"data", "torch"}
    except ZooError:
        return False


def newest(usual: Path, resolved: dict, lowers: Set[str]) -> Path:
    """Of `usual` and its successors `usual`-2, ..., the last that was begun with this recipe; `usual` if none was."""
    found = [
        (int(number[1]), path)
        for path in usual.parent.glob(f"{usual.name}-*")
        if (number := re.fullmatch(r"-([0-9]+)", path.name[len(usual.name) :]))
    ]
    for _, path in sorted(found, reverse=True):
        if _is_of(path, resolved, lowers):
            return path
    return usual


def _is_of(folder: Path, resolved: dict, lowers: Set[str]) -> bool:
    """Whether the run in `folder` is this recipe's. Here all keys count as given, lest one be taken that was begun with
    others on the command line.
    """
    now = begun_with(folder, resolved, dict(recipes.flat(resolved)).keys(), lowers)
    try:
        return (folder / RECIPE).is_file() and next(differences(folder, now), None) is None
    except ZooError:  # such as of a task that isn't installed any more
        return False


@contextlib.contextmanager
def chosen(usual: Path, resolved: dict, lowers: Set[str]) -> Iterator[tuple[Path, bool | None]]:
    """`usual` or, where that is taken, the first of `usual`-2, `usual`-3, ... that isn't, which is printed then; and
    who is in it, as `held` says.

    A run of the same recipe that was interrupted isn't passed by: its folder is chosen, to be refused there, where one
    is told to resume it.
    """
    for folder in successors(usual):
        with held(folder) as alone:
            interrupted = alone is not False and not (folder / CHECKPOINT).exists() and _is_of(folder, resolved, lowers)
            if is_free(folder, alone) or interrupted:
                if folder != usual:
                    print(f"{usual} is taken by another run, so this one goes to {folder}", file=sys.stderr, flush=True)
                yield folder, alone
                return


@contextlib.contextmanager
def held(folder: Path, make: bool = True) -> Iterator[bool | None]:
    """Holds `folder`, which is made if need be, for this process: True; False where another one does, and None where
    the file system can't tell.

    What was made and is still empty at the end is removed. The lock is the folder's own, and ends with the process,
    however that ends.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()] if make else []
    lock = None
    try:
        if make:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise explain(error, folder, 0) from error
        lock, alone = _lock(folder)
        yield alone
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> tuple[int | None, bool | None]:
    lock = None
    try:
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock, os.path.samestat(os.fstat(lock), os.stat(folder))  # another process may just have removed it
    except BlockingIOError:
        return lock, False
    except OSError:  # NFS and Lustre may have no such locks
        return lock, None

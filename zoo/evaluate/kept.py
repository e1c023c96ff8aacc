"""Features that are kept between calls, in the folder `features` of the cache.

A file holds the SHA-256 of what follows it, then safetensors. It is written whole or not at all. A damaged file counts
as missing. The least recently used files are deleted when all of them take more than the limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.paths import PART, home, write_bytes

LIMIT, LIMIT_MB = "ZOO_FEATURES_MB", 2000  # environment variable, and what holds without it
ABANDONED = 3600  # seconds after which a file that is still being written belongs to a process that was killed
DIGEST = 64  # bytes of the SHA-256 in hexadecimal

log = logging.getLogger(__name__)


def limit() -> int:
    """Bytes that kept features may take; 0 keeps none. Raises ZooError for an environment variable that isn't a number
    of megabytes.
    """
    given = os.environ.get(LIMIT, "").strip()
    if given and not given.isdecimal():
        raise ZooError(f"{LIMIT} is {given[:40]!r}; it is a whole number of megabytes, such as {LIMIT_MB}, or 0")
    return 1_000_000 * (int(given) if given else LIMIT_MB)


def recall(identity: dict[str, Any]) -> dict[str, Tensor] | None:
    """The features (n, D) by name that were kept under an identity; None where there are none, or damaged ones."""
    path = _path(identity)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    payload = data[DIGEST:]
    if hashlib.sha256(payload).hexdigest().encode() != data[:DIGEST]:
        log.warning("%s was damaged, so its features are extracted again", path)
        return None
    try:
        found = safetensors.torch.load(payload)
    except (safetensors.SafetensorError, ValueError, KeyError):
        return None
    with contextlib.suppress(OSError):  # another process may have deleted it
        os.utime(path)
    return {name.partition(" ")[2]: found[name] for name in sorted(found)}


def keep(identity: dict[str, Any], features: dict[str, Tensor]) -> None:
    """Keep features under an identity, and delete the least recently used ones beyond the limit.

    A cache that can't be written costs a warning: the features are there all the same.
    """
    most = limit()
    size = sum(x.nbytes for x in features.values())
    if size + 4096 > most:
        return
    numbered = {f"{number:03} {name}": x.contiguous() for number, (name, x) in enumerate(features.items())}
    payload = safetensors.torch.save(numbered)
    path = _path(identity)
    try:
        write_bytes(path, hashlib.sha256(payload).hexdigest().encode() + payload)
        _trim(path, most)
    except (ZooError, OSError) as error:
        log.warning("features are not kept: %s", error)


def _trim(newest: Path, most: int) -> None:
    """Delete the least recently used files, never `newest`, until all of them take at most so many bytes."""
    found = []
    for path in newest.parent.glob("*.features"):
        with contextlib.suppress(FileNotFoundError):  # another process trims too
            about = path.stat()
            found.append((path != newest, -about.st_mtime_ns, about.st_size, path))
    for path in newest.parent.glob(f".*{PART}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
    total = 0
    for _, _, size, path in sorted(found):
        total += size
        if total > most:
            path.unlink(missing_ok=True)


def _path(identity: dict[str, Any]) -> Path:
    text = json.dumps(identity, sort_keys=True)
    return home() / "features" / f"{hashlib.sha256(text.encode()).hexdigest()}.features"

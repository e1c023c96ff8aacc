"""Small shards whose pictures are known by their colour, and what the tests of shards share."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from zoo.errors import ZooError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def colour(number: int) -> tuple[int, int, int]:
    return number % 200, number // 200 * 3 + 5, 255 - number % 250


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (5, 4), colour(number)).save(out, "PNG")
    return out.getvalue()


def tar(path: Path, members: dict[str, bytes], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def shard(path: Path, first: int, count: int) -> Path:
    return tar(
        path,
        {
            name: data
            for n in range(first, first + count)
            for name, data in (
                (f"{n:05d}.png", png(n)),
                (f"{n:05d}.cls", b"%d" % (n % 3)),
                (f"{n:05d}.txt", f"picture {n} é".encode()),
            )
        },
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three training shards of unequal length, 0 to 99, and one of each other split, 100 to 119."""
    for name, first, count in (
        ("train-0", 0, 37),
        ("train-1", 37, 13),
        ("train-2", 50, 50),
        ("val-0", 100, 12),
        ("test-0", 112, 8),
    ):
        shard(tmp_path / "set" / f"{name}.tar", first, count)
    return tmp_path / "set"


def numbers(images: torch.Tensor) -> list[int]:
    """Which pictures these are, by their colour."""
    known = {colour(n): n for n in range(200)}
    return [known[tuple(image[:, 0, 0].tolist())] for image in images]


def refused(call) -> str:
    with pytest.raises(ZooError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)

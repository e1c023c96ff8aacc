"""One thread, so that results don't depend on the machine's cores and two test processes can share them; and a folder
of anybody's pictures.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.pop("PYTEST_ADDOPTS", None)  # is for this pytest, and not for those that tests start
os.environ["OMP_NUM_THREADS"] = (
    "1"  # read when torch is imported; with more, a fork waits for ever for OpenMP's threads
)

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder per class, 60 pictures of several sizes, modes and formats."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(60):
        path = folder / ("cats", "dogs")[number % 2] / f"{number}.{('png', 'jpg', 'webp')[number % 3]}"
        path.parent.mkdir(exist_ok=True)
        image = Image.fromarray(draw.integers(0, 256, (30 + number, 40, 3), dtype=np.uint8))
        image.convert(("RGB", "L", "RGBA", "P")[number // 3 % 4] if number % 3 == 0 else "RGB").save(path)
    return folder


@pytest.fixture
def with_bf16(monkeypatch) -> None:
    """A machine that says it has instructions for bf16. One that hasn't emulates them, which is slower and no less
    right.
    """
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})

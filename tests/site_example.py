"""A folder like site-packages for packages with tasks, and a registry that forgets what a test did to it."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from zoo import registry

TASK = '''
from zoo.registry import register_task
from zoo.tasks.base import PretextTask, TaskOutput

@register_task("{name}")
class Task(PretextTask):
    """A task of somebody else."""

    def __init__(self, backbone, width: int, depth: int = 2, *, words: str = "a b"):
        super().__init__(backbone)

    def views(self, batch):
        return ()

    def forward(self, views):
        return TaskOutput(self.backbone.shift.sum())
'''


@pytest.fixture(autouse=True)
def as_found():
    """What a test registers and imports is forgotten again; built-in tasks stay."""
    modules, tasks = set(sys.modules), dict(registry._here)
    yield
    for name in set(sys.modules) - modules:
        if name.split(".")[0].startswith("plugin"):
            del sys.modules[name]
    for name, task in list(registry._here.items()):
        if not task.__module__.startswith("zoo.tasks."):
            del registry._here[name]
    registry._here.update(tasks)


class Site:
    """A folder like site-packages, into which packages are installed by writing what an installer writes."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))

    def install(
        self,
        distribution: str,
        points: dict[str, str] | bytes,
        version: str = "1.0",
        metadata: bytes | None = None,
        **modules: str,
    ) -> None:
        """Modules are given by their code; each notes in a file that it was imported."""
        for name, code in modules.items():
            (self.folder / f"{name}.py").write_text(
                f"open({str(self.folder / 'imported')!r}, 'a').write('{name} ')\n{code}"
            )
        about = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        plain = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nSummary: What {distribution} does\n"
        (about / "METADATA").write_bytes(plain.encode() if metadata is None else metadata)
        lines = "".join(f"{name} = {target}\n" for name, target in points.items()) if isinstance(points, dict) else ""
        (about / "entry_points.txt").write_bytes(
            f"[zoo.tasks]\n{lines}".encode() if isinstance(points, dict) else points
        )
        importlib.invalidate_caches()

    def imported(self) -> list[str]:
        file = self.folder / "imported"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    return Site(tmp_path / "site", monkeypatch)

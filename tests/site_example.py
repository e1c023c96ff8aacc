"""A folder like site-packages for packages with tasks, and a registry that forgets what a test did to it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo import cli, registry

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


DATA = """
import torch
from zoo.data.dataset import Dataset
from zoo.data.info import DataInfo

class Stripes:
    info = DataInfo(name="stripes", fields=("image", "label"), channels=1, size=8, classes=("across", "down"),
                    license="CC0-1.0", attribution="nobody", homepage="https://stripes.example", summary="Stripes.",
                    splits={"train": 60, "validation": 20, "test": 20})

    def load(self, size):
        label = torch.arange(100) % 2
        line = (torch.arange(size) % 2 * 200).to(torch.uint8)
        image = torch.where(label[:, None, None, None] == 0, line[:, None], line).expand(100, 1, size, size).clone()
        image += (torch.rand(image.shape, generator=torch.Generator().manual_seed(0)) * 40).to(torch.uint8)
        rows = torch.arange(100)
        splits = {"train": rows[:60], "validation": rows[60:80], "test": rows[80:]}
        info = DataInfo(**{**vars(self.info), "size": size, "kinds": {}})
        return Dataset(info, {"image": image, "label": label}, splits, "0" * 64)

stripes = Stripes()
"""

BACKBONE = """
import torch
from torch import nn
from zoo.backbones.image import ImageBackbone

class Net(nn.Module):
    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def __init__(self, width):
        super().__init__()
        self.num_features = width
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return self.norm(self.stem(x)).relu().mean((2, 3))

def net(size=None, width: int = 8):
    return ImageBackbone(Net(width), "small_net", size or 32, {"width": width})
"""


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
        group: str = "zoo.tasks",
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
        (about / "entry_points.txt").write_bytes(f"[{group}]\n{lines}".encode() if isinstance(points, dict) else points)
        importlib.invalidate_caches()

    def imported(self) -> list[str]:
        file = self.folder / "imported"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    return Site(tmp_path / "site", monkeypatch)


@pytest.fixture
def says(capsys) -> Callable[..., tuple[int, str, str]]:
    """(exit code, standard output, standard error) of a command line of `zoo`, run in this process."""

    def say(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(list(words))
        return code, *capsys.readouterr()

    return say

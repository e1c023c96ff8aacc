"""`zoo new-task NAME`: the skeleton of a package with a pretext task, which trains and passes its tests as it is
written.
"""

from __future__ import annotations

import re
from pathlib import Path

from zoo.errors import ZooError
from zoo.paths import expanded, write_text
from zoo.registry import IMPORTED, NAME, list_tasks

TAKEN_CLASSES = ("PretextTask", "TaskOutput")


def new_task(name: str, out: str | Path | None = None) -> Path:
    """Write the package zoo-NAME into `out` (by default the folder zoo-NAME) and return its folder.

    Raises ZooError for a name that isn't lower-case words joined by hyphens, one that is taken, and a folder that holds
    something.
    """
    if not NAME.fullmatch(name) or name.endswith("-") or "--" in name:
        raise ZooError(
            f"{name!r} can't name a task; use lower-case letters and digits, in words joined by hyphens, such as "
            "my-task"
        )
    if name == IMPORTED:
        raise ZooError(f"{name} stands in a card for the task that nobody knows; choose another name")
    for entry in list_tasks():
        if entry.name == name:
            raise ZooError(f"there is a task {name} already, from {entry.origin}; choose another name")
    folder = expanded(out if out is not None else f"zoo-{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ZooError(f"{folder} exists and isn't empty; add --out ANOTHER-FOLDER")
    module = "zoo_" + name.replace("-", "_")
    words = {"NAME": name, "MODULE": module, "CLASS": class_name(name)}
    for path, text in TEMPLATE.items():
        write_text(folder / _filled(path, words), _filled(text, words))
    return folder


def class_name(name: str) -> str:
    """my-idea -> MyIdeaTask: a name that no Python word and nothing imported has."""
    camel = "".join(word.capitalize() for word in name.split("-"))
    camel = camel if camel[0].isalpha() else f"The{camel}"
    camel = camel if camel.endswith("Task") else f"{camel}Task"
    return f"My{camel}" if camel in TAKEN_CLASSES else camel


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@(NAME|MODULE|CLASS)@", lambda match: words[match[1]], text)


TEMPLATE: dict[str, str] = {}

TEMPLATE["pyproject.toml"] = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "zoo-@NAME@"
version = "0.1.0"
description = "@NAME@, a pretext task for the pretext zoo."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["pretext-zoo>=0.1"]

[project.optional-dependencies]
dev = ["pytest>=8"]

# zoo finds the task by this line, without importing it
[project.entry-points."zoo.tasks"]
@NAME@ = "@MODULE@.task:@CLASS@"

[tool.hatch.build.targets.wheel]
packages = ["@MODULE@"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

TEMPLATE["@MODULE@/__init__.py"] = '''\
"""The pretext task @NAME@, in task.py."""
'''

TEMPLATE["@MODULE@/task.py"] = '''\
"""Hide a square of each picture and let the network guess its mean colour from what is around it.

    picture, a square of it blanked --> backbone --> pool --> linear head --> guess (B, C) --+--> squared error
    the square's mean colour ...............................................................>+

The simplest relative of Pathak et al. 2016, "Context Encoders: Feature Learning by Inpainting", https://arxiv.org/abs/1604.07379

Differs: only the mean colour of the hidden square is predicted, where the paper paints all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.ranges import Part, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask, TaskOutput
from zoo.views import random_resized_crop


@register_task("@NAME@")
class @CLASS@(PretextTask):
    """Regression of the mean colour of a hidden square.

    Args:
        hidden: side of the square as a share of the picture's, above 0 and below 1.
        smallest_crop: least share of the picture's area that is shown, 0 to 1.
        flip: chance of a mirrored picture.
    """

    # What defines the task, as plain values with defaults: a recipe's `task` group is this signature. A number's
    # annotation says its range too: those of zoo.ranges, or Annotated[float, Range(0, below=1)]. What lies outside has
    # been refused before this runs.
    def __init__(self, backbone: Backbone, hidden: Part = 0.4, smallest_crop: Share = 0.5, flip: Share = 0.5):
        super().__init__(backbone)
        self.side = round(hidden * backbone.size)
        if not 0 < self.side < backbone.size:
            raise ZooError(f"task.hidden is {hidden}, which hides {self.side} of {backbone.size} pixels; some have to be seen and some hidden")
        self.smallest_crop, self.flip = smallest_crop, flip
        self.head = nn.Linear(backbone.num_features, backbone.channels)

    def views(self, batch: dict) -> tuple[Tensor, Tensor]:
        """All that is random: the picture with its square blanked (B, C, H, W), and the square's mean colour (B, C), in [0, 1]."""
        image = random_resized_crop(batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        image = image.expand(-1, self.backbone.channels, -1, -1)                # grey pictures as the backbone sees them
        mask = self.squares(len(image), image.device)
        colour = (image * mask).sum((2, 3)) / self.side**2
        return torch.where(mask, torch.full_like(image, 0.5), image), colour

    def squares(self, batch: int, device: torch.device) -> Tensor:
        """(B, 1, H, W), True inside a square at a random place, another for each picture."""
        size = self.backbone.size
        top, left = torch.randint(0, size - self.side + 1, (2, batch, 1), device=device)
        pixel = torch.arange(size, device=device)
        rows, columns = ((pixel >= start) & (pixel < start + self.side) for start in (top, left))
        return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)

    def forward(self, views: tuple[Tensor, Tensor]) -> TaskOutput:
        """Nothing random here, and the loss in float32 whatever autocast says."""
        seen, colour = views
        guessed = self.head(self.backbone.pool(seen)).float()                   # (B, C)
        with torch.autocast(seen.device.type, enabled=False):
            loss = (guessed - colour).square().mean()
        return TaskOutput(loss, {"error": (guessed.detach() - colour).abs().mean()})

    @torch.no_grad()
    def picture(self, batch: dict) -> dict[str, Tensor]:
        """What the network saw, and the same with the guessed colour in the square."""
        image = batch["image"][:8]
        seen, _ = self.views({"image": image})
        guessed = self.head(self.backbone.pool(seen)).float()[:, :, None, None].expand_as(seen)
        hidden = (seen == 0.5).all(1, keepdim=True)
        return {"guess": rows_of(seen, torch.where(hidden, guessed, seen).clamp(0, 1))}
'''  # noqa: E501

TEMPLATE["recipes/@NAME@-test-resnet-fashion-mnist.yaml"] = """\
# @NAME@, timm's test_resnet, Fashion-MNIST.
# Measured: nothing yet. Write here what you measured, with seeds, machine and date.
seed: 0
data: {name: fashion-mnist, batch_size: 256}
backbone: {name: test_resnet, output_stride: 8}
task: {name: "@NAME@", hidden: 0.4}
optim: {lr: 2.0e-3, weight_decay: 0.05, warmup: 0.1}
trainer: {max_steps: 600, precision: bf16, channels_last: true}
"""

TEMPLATE["tests/test_task.py"] = '''\
"""The contract of every task of the zoo, and what is particular to this one."""

from __future__ import annotations

from pathlib import Path

import torch
import zoo
from zoo.recipe import read, resolve
from zoo.testing import check_task

from @MODULE@.task import @CLASS@

RECIPE = Path(__file__).parent.parent / "recipes" / "@NAME@-test-resnet-fashion-mnist.yaml"


def test_contract():
    check_task(@CLASS@)


def test_zoo_finds_it():
    assert "@NAME@" in [task.name for task in zoo.list_tasks()]


def test_the_target_is_the_mean_colour_of_what_is_hidden():
    task = @CLASS@(zoo.create_backbone("test_resnet", size=32), smallest_crop=1.0, flip=0.0)
    flat = torch.tensor([0.1, 0.6, 0.9]).view(1, 3, 1, 1).expand(4, 3, 32, 32)
    seen, colour = task.views({"image": flat})
    torch.testing.assert_close(colour, flat[:, :, 0, 0])
    assert ((seen == 0.5).all(1).sum((1, 2)) == task.side**2).all()


def test_the_recipe_is_complete():
    resolved = resolve(read(RECIPE))
    assert resolved["task"]["name"] == "@NAME@" and resolve(resolved) == resolved


def test_the_recipe_runs(tmp_path):
    run = zoo.pretrain(RECIPE, out=tmp_path / "run", smoke=True, progress=False)
    model, transform = zoo.load(run)
    assert model(torch.rand(2, 3, transform.size, transform.size)).shape == (2, model.num_features)
'''

TEMPLATE["README.md"] = """\
# zoo-@NAME@

A pretext task for the pretext zoo.

```bash
pip install -e ".[dev]"
zoo list tasks                                                      # @NAME@, from zoo-@NAME@ 0.1.0
pytest
zoo pretrain recipes/@NAME@-test-resnet-fashion-mnist.yaml
```

`@MODULE@/task.py` is a small task that works; make it yours. What is random belongs into `views`, the loss into `forward`, and what
follows the weights, such as a teacher, into `after_step`. `zoo.testing.check_task` is the contract as a function.
"""  # noqa: E501

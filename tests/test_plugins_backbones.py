"""Backbones of other packages: found by entry point, tried when they are made, and kept in checkpoints."""

# ruff: noqa: F811, since fixtures are imported

from __future__ import annotations

import json

import pytest
import torch
from run_example import place, recipe  # noqa: F401
from site_example import BACKBONE, as_found, says, site  # noqa: F401
from torch import nn

import zoo
from zoo.backbones import create_backbone
from zoo.backbones.names import list_backbones
from zoo.card import read_card
from zoo.checkpoint.read import load_backbone
from zoo.checkpoint.write import update_card
from zoo.errors import ZooError
from zoo.registry import register_task
from zoo.tasks.base import PretextTask, TaskOutput
from zoo.tasks.load import load_task


@pytest.fixture
def nets(site):
    site.install("zoo-nets", {"small_net": "plugin_n:net"}, version="0.3", group="zoo.backbones", plugin_n=BACKBONE)
    return site


def refusal(call) -> str:
    with pytest.raises(ZooError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_is_listed_without_being_imported_and_imported_when_named(nets, says):
    assert list_backbones("small_n*") == ["small_net"] and "resnet18" in list_backbones()
    (row,) = json.loads(says("list", "backbones", "small_*", "--json")[1])
    assert row == {
        "name": "small_net",
        "reads": None,
        "from": "zoo-nets 0.3",
        "about": "What zoo-nets does",
        "problem": None,
    }
    told = json.loads(says("info", "small_net", "--json")[1])
    assert (told["kind"], told["from"]) == ("backbone", "zoo-nets 0.3")
    assert "did you mean small_net" in refusal(lambda: create_backbone("smal_net")) and nets.imported() == []
    torch.manual_seed(3)
    state = torch.get_rng_state()
    backbone = create_backbone("small_net", size=16, width=5)
    assert (backbone.name, backbone.arguments, backbone.origin) == ("small_net", {"width": 5}, "zoo-nets 0.3")
    assert backbone.num_features == 5 and backbone.training and backbone.pool(torch.rand(2, 3, 16, 16)).shape == (2, 5)
    assert not torch.equal(state, torch.get_rng_state()), "weights are drawn from torch's generator"
    again = create_backbone(**backbone.spec())
    assert again.arguments == backbone.arguments and again.size == 16
    assert create_backbone("test_resnet", size=16).origin == "zoo"


def test_a_recipe_names_it_and_its_checkpoint_comes_back(nets, tmp_path):
    backbone = {"name": "small_net", "width": 6}
    run = zoo.pretrain(recipe(backbone=backbone, trainer={"max_steps": 3}), out=tmp_path / "run", progress=False)
    card = read_card(run / "checkpoint")
    assert card["backbone"] == backbone and card["parameters"] == 3 * 6 * 9 + 6 + 2 * 6
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        wanted = load_task(run / "checkpoint").backbone.pool(x)
        model, transform = zoo.load(run)
        assert torch.equal(load_backbone(run / "checkpoint").pool(x), wanted) and transform.size == 16
        assert torch.equal(model((x - 0.5) / 0.5), wanted)
    assert zoo.evaluate(run, protocols=("knn",), labels=(5,), baselines=False)
    update_card(run / "checkpoint", license="MIT")
    assert json.loads((run / "checkpoint" / "config.json").read_text())["pretrained_cfg"]["license"] == "MIT"
    again = zoo.pretrain(recipe(backbone=backbone, trainer={"max_steps": 3}), out=tmp_path / "again", progress=False)
    assert read_card(again / "checkpoint")["files"][0]["sha256"] == card["files"][0]["sha256"]


def test_a_checkpoint_of_it_needs_its_package(nets, tmp_path, monkeypatch):
    run = zoo.pretrain(
        recipe(backbone={"name": "small_net"}, trainer={"max_steps": 1}), out=tmp_path / "r", progress=False
    )
    monkeypatch.setenv("ZOO_NO_PLUGINS", "1")
    assert "'small_net' is not a backbone" in refusal(lambda: zoo.load(run))


WRONG = [  # text of the plugin, what stands there instead, words of the refusal
    ("return ImageBackbone(", "return (", "it made a tuple instead of a zoo.backbones.Backbone"),
    ("return ImageBackbone(", "return nn.Linear(3, 3) or (", "it made a Linear instead of a zoo.backbones.Backbone"),
    ("self.num_features = width", "self.num_features = 2.5", "num_features of its backbone is 2.5"),
    (
        "self.num_features = width",
        "self.num_features = width + 1",
        "gives (2, 8) for two samples where (2, 9) is right",
    ),
    (".mean((2, 3))", "", "pool gives (2, 8, 32, 32) for two samples where (2, 8) is right"),
    ("size or 32", "24", "it was asked for images of 32 pixels and its backbone is made for 24"),
    ("def net(size=None, width: int = 8):", "def net(width: int = 8, size_=32):", "takes no size"),
    ("    return ImageBackbone", "    raise OSError('no disk')\n    return ImageBackbone", "OSError: no disk"),
    ("    return ImageBackbone", "    raise SystemExit(3)\n    return ImageBackbone", "SystemExit: 3"),
    ("nn.Conv2d(3,", "nn.Conv2d(4,", "can't be used: RuntimeError: "),
    ("def net(", "net = 3\ndef other(", "plugin_n:net is a int instead of a function"),
    ("def net(", "def other(", "can't be imported: AttributeError"),
    ("import torch", "import plugin_nowhere", "can't be imported: ModuleNotFoundError"),
]


@pytest.mark.parametrize(("old", "new", "words"), WRONG)
def test_what_is_no_backbone_is_refused_with_its_distribution(old, new, words, site):
    assert old in BACKBONE
    code = BACKBONE.replace(old, new, 1)
    if "size_" in new:
        code = code.replace("size or 32", "size_")
    site.install("zoo-nets", {"small_net": "plugin_n:net"}, group="zoo.backbones", plugin_n=code)
    said = refusal(lambda: create_backbone("small_net", size=32))
    assert said.startswith("the backbone small_net of zoo-nets 1.0 can't be ") and words in said
    assert create_backbone("test_resnet", size=32).num_features


def test_an_unknown_keyword_and_its_nearest(nets):
    said = refusal(lambda: create_backbone("small_net", size=32, widht=3))
    assert "backbone.widht" in said and "did you mean width" in said and "zoo-nets 0.3" in said


def test_it_cant_shadow_a_built_in_and_two_claimants_are_named(site, says):
    site.install("zoo-thief", {"resnet18": "plugin_a:net"}, group="zoo.backbones", plugin_a=BACKBONE)
    site.install("zoo-one", {"small_net": "plugin_b:net"}, group="zoo.backbones", plugin_b=BACKBONE)
    site.install("zoo-two", {"small_net": "plugin_c:net"}, group="zoo.backbones", plugin_c=BACKBONE)
    _, out, err = says("list", "backbones", "small*")
    assert "zoo-thief 1.0 also has a backbone 'resnet18'; the built-in one is used" in err
    assert "both claim the name; uninstall one" in out
    said = refusal(lambda: create_backbone("small_net"))
    assert "zoo-one 1.0" in said and "zoo-two 1.0" in said
    assert create_backbone("resnet18", size=32).origin == "zoo" and site.imported() == []


def test_the_check_imports_them_in_processes_of_their_own(nets, says):
    nets.install("zoo-dies", {"small_dies": "plugin_d:x"}, group="zoo.backbones", plugin_d="import os; os._exit(5)")
    nets.install("zoo-three", {"small_three": "plugin_t:x"}, group="zoo.backbones", plugin_t="x = 3")
    rows = json.loads(says("list", "backbones", "small*", "--check", "--json")[1])
    assert {row["name"]: row["problem"] for row in rows} == {
        "small_net": None,
        "small_dies": "zoo-dies 1.0: importing it ends the process, with exit code 5",
        "small_three": "the backbone small_three of zoo-three 1.0 can't be used: plugin_t:x is a int instead of a "
        "function",
    }


LETTERS = """
import torch
from torch import nn
from zoo.backbones import Backbone

class Letters(Backbone):
    reads = "text"

    def __init__(self, length, width):
        super().__init__()
        self.length, self.num_features, self.model = length, width, nn.Embedding(256, width)

    def prepare(self, values):
        rows = [[*text.encode()[: self.length]] + [0] * (self.length - len(text.encode())) for text in values]
        return torch.tensor(rows, device=self.model.weight.device)

    def pool(self, x):
        return self.model(x).mean(1)

    def example(self, count):
        return ["a"] * count

    def spec(self):
        return {"name": self.name, **self.arguments, "length": self.length}

def letters(size=None, length: int = 16, width: int = 8):
    return Letters(length, width)
"""


class Long(PretextTask):
    """Guess whether a text is long."""

    needs, towers = ("text",), {"backbone": "text"}

    def __init__(self, backbone, scale: float = 10.0):
        super().__init__(backbone)
        self.scale, self.head = scale, nn.Linear(backbone.num_features, 1)

    def views(self, batch):
        return self.backbone.prepare(batch["text"]), torch.tensor([len(text) / self.scale for text in batch["text"]])

    def forward(self, views):
        x, wanted = views
        return TaskOutput((self.head(self.backbone.pool(x)).squeeze(1) - wanted).square().mean())


def test_a_backbone_that_reads_texts_is_kept_in_checkpoints_too(site, tmp_path):
    site.install("zoo-letters", {"letters": "plugin_l:letters"}, group="zoo.backbones", plugin_l=LETTERS)
    register_task("long")(Long)
    given = {"data": {"name": "emoji"}, "backbone": {"name": "letters", "width": 6}, "task": {"name": "long"}}
    run = zoo.pretrain(given | {"trainer": {"max_steps": 2}}, out=tmp_path / "run", smoke=True, progress=False)
    card = read_card(run / "checkpoint")
    assert card["backbone"] == {"name": "letters", "width": 6}, "the length is the data's"
    task = load_task(run / "checkpoint")
    assert type(task) is Long and task.represent({"text": ["a", "b"]})["backbone"].shape == (2, 6)
    assert task.backbone.length == card["data"]["kinds"]["text"]["length"]
    update_card(run / "checkpoint", license="MIT")
    assert torch.equal(load_backbone(run / "checkpoint").model.weight, task.backbone.model.weight)

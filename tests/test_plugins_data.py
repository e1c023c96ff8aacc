"""Data sets of other packages: found by entry point, checked against what they say, and refused in one sentence."""

# ruff: noqa: F811, since fixtures are imported

from __future__ import annotations

import json

import pytest
import torch
from run_example import place, recipe  # noqa: F401
from site_example import DATA, as_found, says, site  # noqa: F401

import zoo
from zoo.card import read_card
from zoo.data import plugged
from zoo.data.datasets import data_info, load_data
from zoo.errors import ZooError


@pytest.fixture
def stripes(site):
    site.install("zoo-stripes", {"stripes": "plugin_s:stripes"}, version="2.1", group="zoo.data", plugin_s=DATA)
    return site


def refusal(call) -> str:
    with pytest.raises(ZooError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_is_listed_without_being_imported_and_imported_when_named(stripes, says):
    rows = {row["name"]: row for row in json.loads(says("list", "data", "--json")[1])}
    assert rows["stripes"]["from"] == "zoo-stripes 2.1" and rows["stripes"]["about"] == "What zoo-stripes does"
    assert rows["stripes"]["problem"] is None and rows["digits"]["from"] == "zoo" and stripes.imported() == []
    assert "did you mean stripes" in refusal(lambda: data_info("stripe")) and stripes.imported() == []
    assert data_info("stripes").classes == ("across", "down") and stripes.imported() == ["plugin_s"]
    told = json.loads(says("info", "stripes", "--json")[1])
    assert (told["kind"], told["from"], told["splits"]["train"]) == ("data", "zoo-stripes 2.1", 60)
    data = load_data("stripes", 16)
    assert data.fields["image"].shape == (100, 1, 16, 16) and data.info.size == 16
    assert load_data("stripes").fields["image"].shape == (100, 1, 8, 8), "the set's own size"
    assert zoo.create_data("stripes", batch_size=10).dataset.info.name == "stripes"


def test_a_run_on_it_becomes_a_checkpoint_that_evaluates(stripes, tmp_path):
    run = zoo.pretrain(
        recipe(data={"name": "stripes", "batch_size": 20}, trainer={"max_steps": 3}), out=tmp_path / "r", progress=False
    )
    assert read_card(run / "checkpoint")["data"]["name"] == "stripes"
    rows = zoo.evaluate(run, protocols=("knn",), labels=(5,), baselines=False)
    assert rows and all(0 <= row["value"] <= 100 for row in rows)
    assert zoo.pretrain(recipe(data={"name": "stripes"}), out=tmp_path / "s", smoke=True, progress=False).is_dir()


def test_getting_it_is_its_packages_business(stripes, says):
    assert "stripes comes with zoo-stripes 2.1" in says("data", "get", "stripes")[2]


# ---- broken --------------------------------------------------------------------------------------

CHANGED = [  # text of the plugin, what stands there instead, words of the refusal
    ('name="stripes"', 'name="other"', "its info is called 'other'; give the entry point and the info the same name"),
    ('"test": 20}', '"tests": 20}', "its info.splits has train, validation, tests; it has train, validation, test"),
    ('"train": 60', '"train": 0', "its info.splits['train'] is 0"),
    ('"train": 60', '"train": "60"', "its info.splits['train'] is '60'"),
    ('classes=("across", "down")', "classes=()", "the field 'label' and no classes"),
    ('license="CC0-1.0"', "license=None", "its info.license is None; it is a text"),
    ("info = DataInfo(name", "about = DataInfo(name", "plugin_s:stripes has no info, a zoo.data.info.DataInfo"),
    ("def load", "def loads", "plugin_s:stripes has no function load(size)"),
]
WRONG = [
    ("return Dataset(", "return (", "its load gave a tuple instead of a zoo.data.dataset.Dataset"),
    ('"label": label}', '"labels": label}', "it says fields image, label and loads image, labels"),
    ('"label": label}', '"label": label + 1}', "its field 'label' holds the value 2; its values are 0 to 1"),
    ('"label": label}', '"label": label.float()}', "its field 'label' is float32 (100,) where int64 (n,) is right"),
    ('"label": label}', '"label": label[1:]}', "its field 'label' has 99 rows and 'image' has 100"),
    ('"label": label}', '"label": label.tolist()}', "its field 'label' is a list instead of a tensor"),
    ('"label": label}', '"label": label.numpy()}', "its field 'label' is a ndarray"),
    ('"image": image,', '"image": image / 255,', "float32 (100, 1, 8, 8) where uint8 (n, 1, 8, 8) is right"),
    ('"image": image,', '"image": image[..., 1:],', "uint8 (100, 1, 8, 7) where uint8 (n, 1, 8, 8) is right"),
    ("rows[80:]", "rows[81:]", "its split 'test' has 19 rows and its info says 20"),
    ("rows[80:]", "rows[80:] + 1", "its split 'test' names row 100, and its fields have 100 rows"),
    ("rows[80:]", "list(range(80, 100))", "its split 'test' is no int64 tensor of rows"),
    ('"size": size,', '"size": 5,', "it was asked for images of 8 pixels and loads images of 5"),
    ('"size": size,', '"version": "7",', "it says version 1 and loads a set of version 7"),
    ('"0" * 64', "None", "its fingerprint is None"),
    ("label = torch", "raise OSError('no disk')\n        label = torch", "can't be loaded: OSError: no disk"),
    ("label = torch", "raise SystemExit(3)\n        label = torch", "can't be loaded: SystemExit: 3"),
]


@pytest.mark.parametrize(("old", "new", "words"), CHANGED)
def test_an_entry_that_cant_be_used_is_refused_with_its_distribution(old, new, words, site):
    assert old in DATA
    code = DATA.replace(old, new, 1)
    site.install("zoo-stripes", {"stripes": "plugin_s:stripes"}, group="zoo.data", plugin_s=code)
    said = refusal(lambda: data_info("stripes"))
    assert said.startswith("the data set stripes of zoo-stripes 1.0 can't be used: ") and words in said
    assert refusal(lambda: load_data("stripes")) == said and data_info("digits").name == "digits"


@pytest.mark.parametrize(("old", "new", "words"), WRONG)
def test_a_set_that_isnt_what_it_says_is_refused_with_its_distribution(old, new, words, site):
    assert old in DATA
    code = DATA.replace(old, new, 1)
    site.install("zoo-stripes", {"stripes": "plugin_s:stripes"}, group="zoo.data", plugin_s=code)
    said = refusal(lambda: load_data("stripes"))
    assert said.startswith("the data set stripes of zoo-stripes 1.0 can't be ") and words in said
    assert load_data("digits").info.name == "digits"


KINDS = """
import torch
from zoo.data.dataset import Dataset
from zoo.data.info import DataInfo
from zoo.fields import Audio, Number, Text, Tokens

class Mixed:
    info = DataInfo(name="mixed", kinds={"text": Text(8), "tokens": Tokens(4, 10, 0), "audio": Audio(100, 0.5),
                                         "who": Number(("ann", "bob"))},
                    splits={"train": 4, "validation": 0, "test": 0})

    def load(self, size):
        assert size is None, "there are no images"
        splits = {"train": torch.arange(4), "validation": torch.arange(0), "test": torch.arange(0)}
        fields = {"text": ["a"] * 4, "tokens": torch.full((4, 4), 9), "audio": torch.zeros(4, 50)}
        fields["who"] = torch.ones(4).long()
        return Dataset(self.info, fields, splits, "f")

mixed = Mixed()
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "", None),
        ('["a"] * 4', "[b'a'] * 4", "its field 'text' is not a list of texts"),
        ("torch.full((4, 4), 9)", "torch.full((4, 4), 10)", "its field 'tokens' holds the value 10"),
        ("torch.full((4, 4), 9)", "torch.full((4, 3), 9)", "int64 (4, 3) where int64 (n, 4) is right"),
        ("torch.zeros(4, 50)", "torch.zeros(4, 51)", "float32 (4, 51) where float32 (n, 50) is right"),
        ("torch.ones(4).long()", "-torch.ones(4).long()", "its field 'who' holds the value -1"),
    ],
)
def test_fields_of_every_kind_are_checked(old, new, words, site):
    site.install("zoo-mixed", {"mixed": "plugin_m:mixed"}, group="zoo.data", plugin_m=KINDS.replace(old, new, 1))
    if words is None:
        assert torch.equal(load_data("mixed").fields["tokens"], torch.full((4, 4), 9))
    else:
        assert words in refusal(lambda: load_data("mixed"))


def test_it_cant_shadow_a_built_in_and_two_claimants_are_named(site, says):
    site.install("zoo-thief", {"digits": "plugin_a:stripes"}, group="zoo.data", plugin_a=DATA)
    site.install("zoo-one", {"stripes": "plugin_b:stripes"}, group="zoo.data", plugin_b=DATA)
    site.install("zoo-two", {"stripes": "plugin_c:stripes"}, group="zoo.data", plugin_c=DATA)
    _, out, err = says("list", "data")
    assert "zoo-thief 1.0 also has a data set 'digits'; the built-in one is used" in err and err.count("zoo-thief") == 1
    assert "BROKEN: zoo-" in out and "both claim the name; uninstall one" in out
    assert "did you mean stripes" in says("data", "get", "stripe")[2]
    for name in ("zoo-one 1.0", "zoo-two 1.0"):
        assert name in refusal(lambda: load_data("stripes"))
    assert data_info("digits").license == "CC-BY-4.0" and site.imported() == []


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("Stripes_2", "plugin_s:stripes", "calls it 'Stripes_2'; a data set's name is lower-case words"),
        ("stripes", "plugin_s", "'plugin_s', is not package.module:thing"),
        ("stripes", "plugin_nowhere:stripes", "has no package 'plugin_nowhere'"),
    ],
)
def test_what_metadata_alone_shows_to_be_wrong(name, target, words, site, says):
    site.install("zoo-broken", {name: target}, group="zoo.data")
    (plugin,) = plugged.installed()
    assert words in plugin.problem and words in refusal(lambda: load_data(name))
    assert words in says("list", "data")[1] and says("info", name)[0] == 0


def test_broken_ones_are_named_when_they_are_used_and_by_the_check(stripes, says):
    stripes.install("zoo-raises", {"raises": "plugin_r:x"}, group="zoo.data", plugin_r="raise RuntimeError('no disk')")
    stripes.install("zoo-dies", {"dies": "plugin_d:x"}, group="zoo.data", plugin_d="import os; os._exit(5)")
    stripes.install("zoo-none", {"nothing": "plugin_n:x"}, group="zoo.data", plugin_n="x = 3")
    assert says("list", "data")[0] == 0 and stripes.imported() == []
    words = "the data set raises of zoo-raises 1.0 can't be imported: RuntimeError: no disk"
    assert words == refusal(lambda: load_data("raises"))
    code, out, _ = says("info", "raises", "--json")
    assert code == 0 and json.loads(out)["problem"] == words
    out = says("list", "data", "--check", "--json")[1]
    problems = {row["name"]: row["problem"] for row in json.loads(out) if row["from"] != "zoo"}
    assert problems == {
        "stripes": None,
        "raises": words,
        "dies": "zoo-dies 1.0: importing it ends the process, with exit code 5",
        "nothing": "the data set nothing of zoo-none 1.0 can't be used: plugin_n:x has no info, a "
        "zoo.data.info.DataInfo",
    }


def test_damaged_metadata_of_another_package_is_named(stripes, says):
    stripes.install("zoo-damaged", b"[zoo.data]\nword\n")
    code, out, err = says("list", "data")
    assert code == 0 and "stripes" in out and "zoo_damaged-1.0.dist-info" in err and "is left out" in err
    (row,) = json.loads(says("list", "data", "stripes", "--check", "--json")[1])
    assert "zoo-stripes 2.1 can't be imported" in row["problem"] and "torch can't be used" in row["problem"]
    assert "zoo_damaged-1.0.dist-info" in row["problem"], "the culprit, which isn't the set's package"


def test_they_can_be_switched_off(stripes, monkeypatch):
    monkeypatch.setenv("ZOO_NO_PLUGINS", "1")
    assert plugged.installed() == [] and "there is no data set 'stripes'" in refusal(lambda: load_data("stripes"))

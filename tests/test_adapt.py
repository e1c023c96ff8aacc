from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from checkpoint_example import pictures, trained, untrained
from PIL import Image

import zoo
from zoo import card as cards
from zoo.adapt import Adapted, adapt
from zoo.checkpoint.classifier import with_classifier
from zoo.checkpoint.write import update_card
from zoo.errors import ZooError
from zoo.evaluate import protocols
from zoo.evaluate.banks import extract
from zoo.evaluate.baselines import random_task, raw_pixels
from zoo.evaluate.finetune import FineTuning
from zoo.evaluate.knn import accuracy, choose_k, knn
from zoo.evaluate.labels import choose_labelled, labels_of
from zoo.evaluate.linear import fit_probe
from zoo.tasks.base import PretextTask
from zoo.tasks.load import load_task

module = sys.modules["zoo.adapt"]  # as an attribute of the package that name is the function

VIT = {
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "class_token": False,
    "global_pool": "avg",
    "fc_norm": False,
}
FAMILIES = [
    ("test_resnet", 16, {}),
    ("vit_tiny_patch16_224", 16, VIT),
    ("lcnet_035", 32, {}),
    ("test_resnet", 16, {"in_chans": 1}),
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    trained()  # before a test takes away what training needs
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZOO_HUB", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """Fine-tuning of a few steps that change every weight; the last state is kept."""
    from zoo.evaluate import finetune

    for where in (module, protocols):
        monkeypatch.setattr(where, "tuning_for", lambda task, seed: FineTuning(steps=6, batch_size=32, seed=seed))
    monkeypatch.setattr(finetune, "_right", lambda model, data, rising=iter(range(10**6)): next(rising))


def normal(folder: Path, data, split: str) -> torch.Tensor:
    """The images of a split as the folder's own description says they have to be given: without anything of ours."""
    about = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    image = data.dataset.fields["image"][data.dataset.splits[split]].float() / 255
    channels, *size = about["input_size"]
    assert list(image.shape[-2:]) == size
    mean, std = (torch.tensor(about[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    return (image.expand(-1, channels, -1, -1) - mean) / std


def predictions(folder: Path, data, split: str = "test") -> torch.Tensor:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in normal(folder, data, split).split(512)])


# ---- the folder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["probe", "finetune"])
def test_the_folder_loads_in_timm_and_is_as_good_as_was_said(mode, tmp_path, quick):
    result = adapt(trained(), "digits", mode=mode, per_class=20, out=tmp_path / "out")
    data = zoo.create_data("digits")
    truth, found = labels_of(data)["test"], predictions(result.folder, data)
    assert result.value == round(accuracy(found, truth), 2) > (50 if mode == "probe" else 10)
    assert result.checkpoint == cards.read_card(trained())["name"]
    assert (result.data, result.mode, result.labels, result.images) == ("digits", mode, 20, 200)
    assert result.folder == tmp_path / "out" and sorted(path.name for path in result.folder.iterdir()) == [
        "README.md",
        "adapted.json",
        "config.json",
        "model.safetensors",
    ]

    # the weights: the checkpoint's own, or all of them others; and the probe is the one of the same labels
    own, state = load_task(trained()), timm.create_model(f"local-dir:{result.folder}", pretrained=True).state_dict()
    same = {key: torch.equal(value, state[key]) for key, value in own.backbone.model.state_dict().items()}
    assert set(same.values()) == {mode == "probe"} and state.keys() - same.keys() == {"fc.weight", "fc.bias"}
    if mode == "probe":
        bank = extract(own, data)["backbone"]
        rows = choose_labelled(bank.y["train"], 20, 0)
        probe = fit_probe(bank.x["train"][rows], bank.y["train"][rows], bank.x["validation"], bank.y["validation"], 10)
        assert torch.equal(found, probe.predict(bank.x["test"]))
        torch.testing.assert_close(state["fc.weight"], probe.weight.float())


def test_it_loads_where_the_zoo_is_not_installed(tmp_path):
    adapt(trained(), "digits", per_class=5, out=tmp_path / "out")
    code = (
        "import sys; sys.modules['zoo'] = None\nimport timm, torch\n"
        "model = timm.create_model('local-dir:out', pretrained=True).eval()\n"
        "print(model(torch.zeros(2, 3, 8, 8)).shape[1], *model.pretrained_cfg['label_names'])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["10", *"0123456789"]


def test_by_low_rank_the_folder_is_a_plain_model_of_timm_too(tmp_path, quick):
    source, data = untrained(tmp_path / "source", "vit_tiny_patch16_224", **VIT), zoo.create_data("digits", size=16)
    result = adapt(source, "digits", mode="lora", per_class=20, out=tmp_path / "out")
    assert result.value == round(accuracy(predictions(result.folder, data), labels_of(data)["test"]), 2) and set(
        result.baselines
    ) == {"random weights", "pixels"}
    own, state = (
        load_task(source).backbone.model.state_dict(),
        timm.create_model(f"local-dir:{result.folder}", pretrained=True).state_dict(),
    )
    assert state.keys() - own.keys() == {"head.weight", "head.bias"}
    assert {torch.equal(value, state[key]) for key, value in own.items()} == {True, False}


def test_low_rank_is_refused_before_any_work_where_there_is_no_linear_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(PretextTask, "represent", None)
    assert refused(trained(), "digits", mode="lora").startswith(
        "test_resnet has no linear layer to add a matrix of low rank to; use --mode finetune"
    )


def test_labels_have_names_and_the_facts_are_kept(tmp_path):
    source = shutil.copytree(trained(), tmp_path / "source")
    update_card(source, license="CC-BY-4.0")
    result = adapt(
        source, f"folder:{pictures(tmp_path / 'classes', classes=('Ärger', 'two words', 'z'))}", out=tmp_path / "out"
    )
    names = ["two words", "z", "Ärger"]  # in the order of the folders' names
    config = json.loads((result.folder / "config.json").read_text())
    assert (
        result.classes
        == tuple(names)
        == tuple(config["pretrained_cfg"]["label_names"])
        == tuple(timm.create_model(f"local-dir:{result.folder}", pretrained=True).pretrained_cfg["label_names"])
    )
    assert (
        config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 3
        and config["pretrained_cfg"]["license"] == "CC-BY-4.0"
    )
    facts, card = json.loads((result.folder / "adapted.json").read_text()), cards.read_card(source)
    assert facts["parent"] == {"name": card["name"], "card_sha256": cards.sha256(source / "zoo.json")}
    assert (facts["value"], facts["split"], facts["labels"], facts["images"], facts["classes"]) == (
        result.value,
        "test",
        1.0,
        result.images,
        names,
    )
    assert (facts["license"], facts["attribution"]) == (
        "CC-BY-4.0",
        card["data"]["attribution"],
    ) and "folder" not in facts
    readme = (result.folder / "README.md").read_text()
    assert f"{result.value:.1f} % right on the test split, from {result.images} labelled pictures (all)" in readme


@pytest.mark.parametrize("channels", [3, 1])
def test_the_readme_says_how_to_use_it(tmp_path, channels):
    source = untrained(tmp_path / "source", **({"in_chans": 1} if channels == 1 else {}))
    result = adapt(source, "digits", per_class=10, out=tmp_path / "out")
    data = zoo.create_data("digits", size=16)
    code = (result.folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found = predictions(result.folder, data)
    for number in (0, 7, 100):
        Image.fromarray(data.dataset.fields["image"][data.dataset.splits["test"][number], 0].numpy()).save(
            tmp_path / "picture.png"
        )
        said = []
        exec(code.replace("PATH", str(result.folder)), {"print": said.append})  # it is our own text
        assert said == [str(int(found[number]))]


def test_a_folder_of_pictures_in_one_line(tmp_path):
    pictures(tmp_path / "My Pictures!")
    result = adapt(trained(), "folder:My Pictures!")
    assert result.folder == Path("adapted") / f"{result.checkpoint}-my-pictures-probe" and result.classes == (
        "left",
        "right",
        "top",
    )
    data = zoo.create_data("folder:My Pictures!", size=8)
    assert result.value == round(accuracy(predictions(result.folder, data), labels_of(data)["test"]), 2) > 50
    assert os.stat(result.folder).st_mode & 0o777 == 0o755


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    assert (adapt(trained(), "digits", per_class=2, out=tmp_path / "out").folder / "model.safetensors").is_file()


# ---- labels and modes ----------------------------------------------------------------------------


def test_nearest_neighbours_write_nothing(tmp_path):
    result = adapt(trained(), "digits", mode="knn", per_class=30, seed=1)
    bank = extract(load_task(trained()), zoo.create_data("digits"))["backbone"]
    rows = choose_labelled(bank.y["train"], 30, 1)
    x, y = bank.x["train"][rows], bank.y["train"][rows]
    k, _ = choose_k(x, y, bank.x["validation"], bank.y["validation"], 10)
    assert result.value == round(accuracy(knn(x, y, bank.x["test"], k, 10), bank.y["test"]), 2)
    assert isinstance(result, Adapted) and result.folder is None
    assert [path.name for path in tmp_path.iterdir()] == ["home"]  # the features that are kept, and no classifier


def test_the_amount_and_the_seed_decide_which_labels():
    values = {
        given: adapt(trained(), "digits", mode="knn", **dict(given))
        for given in ((), *((("labels", 0.05), ("seed", seed)) for seed in range(4)), (("per_class", 1),))
    }
    assert [result.images for result in values.values()] == [1258, 60, 60, 60, 60, 10]
    assert [result.labels for result in values.values()] == [1.0, 0.05, 0.05, 0.05, 0.05, 1]
    every, *few, one = (result.value for result in values.values())
    assert every > max(few) and min(few) > one and len(set(few)) > 1  # of 269 pictures two draws may get as many right


def test_fine_tuning_gets_the_seed_the_rows_and_the_probe(tmp_path, monkeypatch):
    given = []

    def note(backbone, probe, data, rows, how):
        given.append((rows, how, probe))
        return module.Classifier(backbone, probe.weight, probe.bias)

    monkeypatch.setattr(module, "finetune", note)
    adapt(trained(), "digits", mode="finetune", per_class=3, seed=5, out=tmp_path / "out", baselines=False)
    ((rows, how, probe),) = given
    assert (
        torch.equal(rows, choose_labelled(labels_of(zoo.create_data("digits"))["train"], 3, 5))
        and how == FineTuning(seed=5)
        and probe.tried
    )


@pytest.mark.parametrize("mode", ["knn", "probe", "finetune"])
def test_random_weights_and_raw_pixels_stand_beside_it(mode, tmp_path, quick):
    """In the protocol and with the labels of the checkpoint itself. Pixels have no network to fine-tune, and get a
    probe.
    """
    given = {"mode": mode, "per_class": 10, "seed": 2}
    result, data = adapt(trained(), "digits", **given), zoo.create_data("digits")
    rows, card = choose_labelled(labels_of(data)["train"], 10, 2), cards.read_card(trained())
    protocol = "knn" if mode == "knn" else "linear"
    assert result.baselines["pixels"] == round(protocols.frozen(protocol, raw_pixels(data), rows, 10), 2)
    if mode == "finetune":
        task = random_task(card, 0)
        expected = protocols.finetuned(task, extract(task, data)["backbone"], data, rows, protocols.tuning_for(task, 2))
    else:
        expected = (
            sum(
                protocols.frozen(protocol, extract(random_task(card, draw), data)["backbone"], rows, 10)
                for draw in range(3)
            )
            / 3
        )
    assert result.baselines == {"random weights": round(expected, 2), "pixels": result.baselines["pixels"]}
    if mode != "knn":
        assert json.loads((result.folder / "adapted.json").read_text())["baselines"] == result.baselines
        said = (
            f"From the same ones: {result.baselines['random weights']:.1f} % by random weights, "
            f"{result.baselines['pixels']:.1f} % by pixels."
        )
        assert said in (result.folder / "README.md").read_text()
        given |= {"out": tmp_path / "without"}
    without = adapt(trained(), "digits", baselines=False, **given)
    assert (without.value, without.baselines) == (result.value, {})
    assert mode == "knn" or "From the same ones" not in (without.folder / "README.md").read_text()


# ---- families of networks ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size", "arguments"), FAMILIES)
def test_logits_are_those_of_a_linear_layer_on_pooled_features(name, size, arguments, tmp_path):
    backbone = load_task(untrained(tmp_path / "source", name, size, **arguments)).backbone
    weight, bias = torch.randn(7, backbone.num_features), torch.randn(7)
    before = torch.get_rng_state()
    model = with_classifier(backbone, weight, bias)
    assert torch.equal(torch.get_rng_state(), before) and not model.training
    x = torch.rand(6, backbone.channels, size, size)
    with torch.no_grad():
        torch.testing.assert_close(
            model(backbone.normalize(x)), backbone.pool(x) @ weight.T + bias, atol=1e-5, rtol=1e-5
        )
    if name == "lcnet_035":
        assert backbone.num_features != backbone.model.num_features  # it widens after pooling


@pytest.mark.parametrize(("name", "size", "arguments"), FAMILIES[1:])
def test_every_family_goes_through(name, size, arguments, tmp_path):
    source = untrained(tmp_path / "source", name, size, **arguments)
    result = adapt(source, "digits", per_class=10, out=tmp_path / "out")
    data = zoo.create_data("digits", size=size)
    assert result.value == round(accuracy(predictions(result.folder, data), labels_of(data)["test"]), 2) > 20


@pytest.mark.parametrize(
    ("name", "arguments", "kind"),
    [("dla46_c", {}, "Conv2d"), ("deit_tiny_distilled_patch16_224", {"depth": 1}, "tuple")],
)
def test_a_classifier_that_is_not_one_layer_is_refused_before_any_work(name, arguments, kind, tmp_path, monkeypatch):
    source = untrained(tmp_path / "source", name, 32, **arguments)
    monkeypatch.setattr(PretextTask, "represent", None)
    for mode in ("probe", "finetune"):
        assert refused(source, "digits", mode=mode).startswith(
            f"timm's classifier of {name} is {kind}, not one linear layer on its "
        )
    monkeypatch.undo()
    assert adapt(source, "digits", mode="knn", per_class=1).value > 5


def test_a_network_with_more_than_a_classifier_on_top_is_refused():
    backbone = zoo.create_backbone("test_resnet", size=16)
    del backbone.model.layer4
    with pytest.raises(
        ZooError,
        match=r"timm's test_resnet has more than its classifier that the backbone lacks \(layer4\.0\.conv1\.weight, ",
    ):
        with_classifier(backbone, torch.zeros(3, 96), torch.zeros(3))


# ---- refusals ------------------------------------------------------------------------------------


def refused(checkpoint, data: str, **given) -> str:
    with pytest.raises(ZooError) as caught:
        adapt(checkpoint, data, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "given", "says"),
    [
        ("digits", {"mode": "prob"}, "'prob' is no way to adapt; did you mean probe?"),
        ("digits", {"labels": 0}, "0 is no amount of labels; give a share above 0 and at most 1"),
        ("digits", {"labels": 5.0}, "5.0 is no amount of labels"),
        ("digits", {"labels": 1, "per_class": 3}, "two ways to say how many labels"),
        ("digits", {"labels": float("nan")}, "nan is no amount of labels"),
        ("digits", {"per_class": 0}, "0 is no amount of labels"),
        ("digits", {"per_class": 123}, "class 8 has 122 training images; ask for at most 122"),
        (
            "digits",
            {"labels": 0.1, "per_class": 5},
            "labels and per_class are two ways to say how many labels may be used; give one of them",
        ),
        (
            "digits",
            {"mode": "knn", "out": "somewhere"},
            "nearest neighbours leave no classifier to write; leave out --out",
        ),
        ("digit", {}, "there is no data set 'digit'; did you mean digits?"),
        ("stl10-unlabeled", {}, "stl10-unlabeled has no labels ("),
        ("folder:flat", {}, "folder:flat has no labels ("),
        ("folder:flat", {"mode": "knn"}, "lies in no class folder"),
        ("folder:nowhere", {}, "there is no folder "),
    ],
)
def test_what_can_not_be_done_is_refused_before_any_work(data, given, says, tmp_path, monkeypatch):
    shutil.copytree(pictures(tmp_path / "classes", images=20) / "left", tmp_path / "flat")
    monkeypatch.setattr(PretextTask, "represent", None)
    if given != {"per_class": 123}:  # how many there are of each class is known from the data alone
        monkeypatch.setattr("zoo.data.module.load_data", None)
    assert says in refused(trained(), data, **given)
    assert not Path("adapted").exists() and not Path("somewhere").exists()


def test_an_unknown_checkpoint_is_refused(tmp_path):
    assert "holds no checkpoint" in refused(pictures(tmp_path / "classes", images=20), "digits")


def test_what_exists_is_not_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr(PretextTask, "represent", None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert "exists already; remove it, or add --out ANOTHER-FOLDER" in refused(
        trained(), "digits", out=tmp_path / "out"
    )
    assert "thesis.txt exists already" in refused(trained(), "digits", out=tmp_path / "out" / "thesis.txt")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_the_usual_folder_gets_a_number_where_it_is_taken():
    usual = Path("adapted") / f"{cards.read_card(trained())['name']}-digits-probe"
    assert [zoo.adapt(trained(), "digits", per_class=1).folder for _ in range(3)] == [
        usual,
        Path(f"{usual}-2"),
        Path(f"{usual}-3"),
    ]
    assert all((Path(f"{usual}{end}") / "model.safetensors").is_file() for end in ("", "-2", "-3"))


def test_colour_into_a_grey_network_is_refused(tmp_path):
    grey = untrained(tmp_path / "grey", in_chans=1)
    for mode in ("knn", "probe", "finetune"):
        assert "made for 1 channel(s)" in refused(
            grey, f"folder:{pictures(tmp_path / 'classes', images=30)}", mode=mode
        )


# ---- a crash while writing -----------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["write_bytes", "write_text", "weights", "sync_folder", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_crash_leaves_nothing_behind(broken, error, tmp_path, monkeypatch):
    def crash(*_, **__):
        raise error

    here = tmp_path / "here"
    here.mkdir()
    if broken == "replace":  # of the whole folder; files are put in their places by it, too
        replace = os.replace
        monkeypatch.setattr(
            module.os, "replace", lambda old, new: crash() if new == here / "out" else replace(old, new)
        )
    elif broken == "write_text":  # the last of the files
        text = module.write_text
        monkeypatch.setattr(
            module, "write_text", lambda path, words: crash() if path.name == "README.md" else text(path, words)
        )
    else:
        monkeypatch.setattr(module, broken, crash)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ZooError) as caught:
        adapt(trained(), "digits", per_class=2, out=here / "out")
    if isinstance(error, OSError):
        assert "out can't be written: the disk is full" in str(caught.value)
    left = [path.name for path in here.iterdir()]
    assert left == (["out"] if broken == "sync_folder" else [])  # that is after the folder was complete
    if left:
        assert timm.create_model(f"local-dir:{here / 'out'}", pretrained=True).num_classes == 10

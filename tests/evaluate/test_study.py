"""One way to what a checkpoint is worth: every part is read once, and features are kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_example import trained

import zoo
from zoo.checkpoint.write import update_card
from zoo.data.dataset import Dataset
from zoo.data.info import DataInfo
from zoo.data.module import ZooData
from zoo.errors import ZooError
from zoo.evaluate import kept
from zoo.evaluate.banks import extract, fields_read
from zoo.evaluate.baselines import raw_rows
from zoo.evaluate.protocols import PROTOCOLS
from zoo.evaluate.reproduce import reproduce
from zoo.evaluate.study import Study
from zoo.evaluate.table import evaluate
from zoo.fields import Audio, Image, Label, Text
from zoo.report.page import write_page
from zoo.tasks.base import PretextTask


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZOO_HUB", raising=False)
    monkeypatch.delenv("ZOO_FEATURES_MB", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def represented(monkeypatch) -> list[int]:
    """Sizes of the batches that a task represented."""
    trained()  # which represents some samples on its way
    sizes, represent = [], PretextTask.represent

    def counting(task, batch):
        sizes.append(len(batch["image"]))
        return represent(task, batch)

    monkeypatch.setattr(PretextTask, "represent", counting)
    return sizes


def files(home: Path) -> list[Path]:
    return sorted((home / "features").iterdir())


# ---- features are extracted once -----------------------------------------------------------------


def test_whatever_comes_second_extracts_nothing(represented, tmp_path):
    first = evaluate(trained(), protocols=("knn",), labels=(1.0,))
    assert sum(represented) == 4 * 1797  # the checkpoint and three networks with random weights, each sample once
    represented.clear()
    assert evaluate(trained(), protocols=("knn",), labels=(1.0,)) == first
    evaluate(trained(), protocols=("linear",), labels=(3,))
    assert zoo.adapt(trained(), "digits", mode="probe", per_class=5).baselines.keys() == {"random weights", "pixels"}
    assert reproduce(trained())[0]["holds"]
    write_page(tmp_path / "page.html", trained())
    assert represented == []


def test_results_are_those_without_keeping(represented, monkeypatch, home):
    with monkeypatch.context() as changed:
        changed.setenv("ZOO_FEATURES_MB", "0")
        plain = evaluate(trained(), protocols=("knn", "linear"), labels=(4,))
        assert not (home / "features").exists()
        represented.clear()
        assert evaluate(trained(), protocols=("knn", "linear"), labels=(4,)) == plain and sum(represented) == 4 * 1797
    assert evaluate(trained(), protocols=("knn", "linear"), labels=(4,)) == plain
    assert evaluate(trained(), protocols=("knn", "linear"), labels=(4,)) == plain


def test_other_weights_and_other_data_have_features_of_their_own(represented, tmp_path):
    own = Study(trained()).own
    other = Path(shutil.copytree(trained(), tmp_path / "other"))
    task = Study(other).task
    with torch.no_grad():
        next(task.backbone.parameters()).mul_(1.5)
    from zoo.checkpoint.write import export

    fresh = export(task.cpu(), tmp_path / "fresh", Study(other).card)
    represented.clear()
    assert not torch.equal(Study(fresh).own.x["test"], own.x["test"]) and sum(represented) == 1797
    represented.clear()
    update_card(other, summary="Other words, and the same weights.")
    assert torch.equal(Study(other).own.x["test"], own.x["test"]) and represented == []


def test_every_part_is_read_once(monkeypatch):
    calls = []
    for where, name in (("zoo.data.module", "load_data"), ("zoo.evaluate.study", "load_task")):
        real = getattr(sys.modules[where], name)
        monkeypatch.setattr(
            f"{where}.{name}", lambda *given, real=real, name=name, **also: calls.append(name) or real(*given, **also)
        )
    study = Study(trained())
    assert calls == []
    for _ in range(2):
        study.candidates()
        study.choose(1.0, 0)
    assert sorted(calls) == ["load_data", "load_task"]


# ---- the folder of features ----------------------------------------------------------------------


def test_damaged_features_are_extracted_again(represented, home):
    first = evaluate(trained(), protocols=("knn",), labels=(1.0,), baselines=False)
    for path, damage in zip(
        files(home), (lambda b: b[:-100], lambda b: b[:200] + b"x" + b[201:], lambda b: b""), strict=True
    ):
        path.write_bytes(damage(path.read_bytes()))
    represented.clear()
    assert evaluate(trained(), protocols=("knn",), labels=(1.0,), baselines=False) == first
    assert sum(represented) == 1797
    represented.clear()
    assert evaluate(trained(), protocols=("knn",), labels=(1.0,), baselines=False) == first and represented == []


def features(count: int, value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"z": torch.full((count, 1000), value), "a": torch.zeros(count, 2)}


def test_they_come_back_as_they_were_in_their_order():
    kept.keep({"key": 1}, features(3))
    found = kept.recall({"key": 1})
    assert list(found) == ["z", "a"] and all(torch.equal(found[name], x) for name, x in features(3).items())
    assert kept.recall({"key": 2}) is None


def test_the_least_recently_used_go_first(monkeypatch, home):
    monkeypatch.setenv("ZOO_FEATURES_MB", "1")
    for number in range(3):  # of 0.32 MB each
        kept.keep({"key": number}, features(80))
    for path in files(home):
        os.utime(path, ns=(10, 10))
    assert kept.recall({"key": 0}) is not None  # used just now
    kept.keep({"key": 3}, features(80))
    alive = [number for number in range(4) if kept.recall({"key": number}) is not None]
    assert len(alive) == 3 and {0, 3} <= set(alive)
    assert sum(path.stat().st_size for path in files(home)) <= 1_000_000
    kept.keep({"key": 4}, features(1000))  # larger than everything that may be kept: not kept, and nothing goes for it
    assert kept.recall({"key": 4}) is None and len(files(home)) == 3


def test_what_a_killed_process_was_writing_goes_after_an_hour(home):
    kept.keep({"key": 0}, features(1))
    old, new = (home / "features" / f".{name}.features.abcdefgh.part" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    kept.keep({"key": 1}, features(1))
    assert not old.exists() and new.exists()


def test_a_limit_that_is_no_number_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("zoo.data.module.load_data", None)
    for word in ("many", "-1", "1.5"):
        monkeypatch.setenv("ZOO_FEATURES_MB", word)
        with pytest.raises(ZooError, match=f"ZOO_FEATURES_MB is '{word}'"):
            evaluate(trained(), protocols=("knn",))


def test_a_cache_that_can_not_be_written_costs_nothing_but_time(home, caplog):
    home.mkdir()
    (home / "features").write_text("in the way")
    rows = evaluate(trained(), protocols=("knn",), labels=(5,), baselines=False)
    assert rows[0]["value"] > 20 and "features are not kept" in caplog.text


def test_two_processes_may_keep_and_trim_at_once(home):
    code = (
        "import torch\nfrom zoo.evaluate import kept\n"
        "for turn in range(60):\n"
        "    key = turn % 6\n"
        "    found = kept.recall({'key': key})\n"
        "    assert found is None or float(found['x'].mean()) == key, found\n"
        "    kept.keep({'key': key}, {'x': torch.full((60, 1000), float(key))})\n"
    )
    environment = os.environ | {"ZOO_FEATURES_MB": "1", "PYTHONPATH": str(Path(zoo.__file__).parents[1])}
    running = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=environment, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert not any(b"damaged" in text or b"not kept" in text for text in said)
    assert sum(path.stat().st_size for path in files(home)) <= 1_000_000 and not list(
        (home / "features").glob("*.part")
    )


# ---- fields of other kinds -----------------------------------------------------------------------

WORDS = ["a red cat", "the blue dog", "", "one red dog, 2 cats"]


def dataset(count: int = 40, **columns) -> ZooData:
    """Samples of these fields, field -> (kind, values)."""
    order = torch.arange(count)
    splits = {"train": order[: count // 2], "validation": order[count // 2 : -8], "test": order[-8:]}
    info = DataInfo(
        "made",
        kinds={name: kind for name, (kind, _) in columns.items()},
        splits={name: len(rows) for name, rows in splits.items()},
    )
    return ZooData(Dataset(info, {name: values for name, (_, values) in columns.items()}, splits, "made"))


def label(count: int = 40) -> tuple:
    return Label(("even", "odd")), torch.arange(count) % 2


def test_texts_as_they_are_are_bags_of_words():
    data = dataset(text=(Text(), [WORDS[number % 4] for number in range(40)]), label=label())
    name, bank = raw_rows(data, "text")
    assert name == "bag of words" and {split: len(x) for split, x in bank.x.items()} == data.dataset.info.splits
    train = bank.x["train"]
    assert train.shape[1] == 9 and train.dtype == torch.float32  # a red cat the blue dog one 2 cats
    torch.testing.assert_close(train[:4].norm(dim=1), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert torch.equal(train[0], train[4]) and float(train[0] @ train[1]) == 0 < float(train[0] @ train[3])
    assert PROTOCOLS["knn"].value(bank, torch.arange(20), 2) > 50


def test_texts_without_a_word_are_rows_of_zeros():
    bank = raw_rows(dataset(text=(Text(), ["", "..."] * 20), label=label()), "text")[1]
    assert bank.x["train"].shape == (20, 1) and not bank.x["test"].any()


def test_sounds_as_they_are_are_their_spectra():
    time = torch.arange(4000) / 8000
    low, high = (torch.sin(2 * torch.pi * hertz * time) for hertz in (200.0, 2000.0))
    sounds = torch.stack([low if number % 2 else high for number in range(40)])
    sounds = sounds + 0.05 * torch.randn(40, 4000, generator=torch.Generator().manual_seed(0))
    name, bank = raw_rows(dataset(audio=(Audio(8000, 0.5), sounds), label=label()), "audio")
    assert name == "log-mel" and bank.x["train"].isfinite().all()
    assert PROTOCOLS["linear"].value(bank, torch.arange(20), 2) == 100
    means = bank.x["train"][:, : bank.x["train"].shape[1] // 2]
    assert int(means[1].argmax()) < int(means[0].argmax())  # 200 Hz lies in a lower band than 2,000 Hz


def test_rectangles_keep_their_proportions():
    image = torch.randint(0, 256, (40, 1, 128, 32), dtype=torch.uint8)
    name, bank = raw_rows(dataset(image=(Image(1, 128, 32), image), label=label()))
    assert name == "pixels" and bank.x["train"].shape == (20, 32 * 8)


class Reads(PretextTask):
    """Two fields, of which it represents what there is."""

    needs = ("image", "text", "label")

    def views(self, batch):
        raise NotImplementedError

    def forward(self, views):
        raise NotImplementedError

    def represent(self, batch):
        assert "label" not in batch
        length = torch.tensor([[float(len(text))] for text in batch["text"]])
        return {"backbone": batch["image"].float().flatten(1), "length": length}


def test_a_representation_gets_the_fields_that_the_task_needs_but_never_the_label():
    image = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    texts = [WORDS[number % 4] for number in range(40)]
    data = dataset(image=(Image(3, 8, 8), image), text=(Text(), texts), label=label(), other=label())
    task = Reads(zoo.create_backbone("test_resnet", size=8))
    assert fields_read(task, data) == ("image", "text")
    banks = extract(task, data, ("test",))
    assert list(banks) == ["backbone", "length"]
    assert banks["length"].x["test"][:, 0].tolist() == [len(text) for text in texts[-8:]]
    assert torch.equal(banks["backbone"].y["test"], torch.arange(40)[-8:] % 2)


def test_data_without_the_field_of_a_tower_are_refused():
    data = dataset(text=(Text(), WORDS * 10), label=label())
    with pytest.raises(ZooError, match="made has text, label, and the task .* reads image"):
        extract(zoo.create_task("simclr", zoo.create_backbone("test_resnet", size=8)), data)

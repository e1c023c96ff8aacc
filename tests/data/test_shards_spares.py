"""Pictures of shards that can't be read give way to the next of their class: the same ones for every process and after
every resume.
"""

# ruff: noqa: F811, since fixtures are imported

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from killing import at, forked, kill
from shards_example import folder, home, numbers, refused  # noqa: F401

import zoo
from zoo.data.dataset import Dataset
from zoo.data.datasets import load_data
from zoo.data.module import ZooData
from zoo.data.order import Batches
from zoo.data.shards.shards import Pictures

INSTEAD = {
    60: 66,
    63: 66,
    99: 0,
    103: 106,
}  # of each bad picture; 99 is the last of its class in train, and 106 in validation, as 103 is


def spoil(folder: Path, number: int) -> int:
    """Damage the picture of sample `number`; returns the byte at which it begins."""
    (path,) = (p for p in folder.glob("*.tar") if f"{number:05d}.png".encode() in p.read_bytes())
    whole = bytearray(path.read_bytes())
    place = whole.index(b"\x89PNG", whole.index(f"{number:05d}.png".encode()))
    whole[place : place + 4] = b"oops"
    path.write_bytes(whole)
    return place


@pytest.fixture
def spoilt(folder) -> Path:
    for number in INSTEAD:
        spoil(folder, number)
    return folder


def load(folder: Path, share: float = 0.05) -> Dataset:
    return load_data(f"shards:{folder}", 4, bad_samples="replace", bad_share=share)


def row(data: Dataset, number: int) -> int:
    return int(data.splits["train"][number] if number < 100 else data.splits["validation"][number - 100])


def test_the_next_good_one_of_its_split_and_class_stands_in(spoilt, capsys):
    data, plain = load(spoilt), load_data(f"shards:{spoilt}", 4)
    assert data.bad == [] and data.fingerprint == plain.fingerprint
    for split, wanted in (("train", range(100)), ("validation", range(100, 112)), ("test", range(112, 120))):
        rows = data.splits[split]
        shown = [INSTEAD.get(n, n) for n in wanted]
        for _ in range(2):
            batches = list(ZooData(data, 50).batches(split))
            assert [n for batch in batches for n in numbers(batch["image"])] == shown
            assert [text for batch in batches for text in batch["text"]] == [f"picture {n} é" for n in shown], (
                "a text is of another picture"
            )
            assert torch.cat([batch["index"] for batch in batches]).tolist() == rows.tolist()
        assert data.fields["label"][rows].tolist() == [n % 3 for n in wanted] == [n % 3 for n in shown]
    assert {(entry["path"], entry["replaced_by"]["path"]) for entry in data.bad} == {
        ("train-2.tar", "train-2.tar"),
        ("train-2.tar", "train-0.tar"),
        ("val-0.tar", "val-0.tar"),
    }
    assert len(data.bad) == 4 and all("isn't an image" in entry["reason"] for entry in data.bad)
    whole = (spoilt / "train-2.tar").read_bytes()
    assert sorted(entry["byte"] for entry in data.bad if entry["path"] == "train-2.tar") == [
        k for k in range(len(whole)) if whole.startswith(b"oops", k)
    ]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is replaced; `dataset.bad` names each" in said


def test_which_one_does_not_depend_on_what_was_asked_for_before(spoilt):
    for order in ([60, 63, 66, 99], [99, 63, 60], [63], [60]):
        data = load(spoilt)
        assert numbers(torch.cat([data.fields["image"][torch.tensor([row(data, n)])] for n in order])) == [
            INSTEAD.get(n, n) for n in order
        ]


def test_the_first_row_of_all_is_named_like_any_other(folder):
    spoil(folder, 118)  # the last of its class in test, whose first, in the shard test-0, is row 0
    data = load(folder)
    (first,) = numbers(data.fields["image"][data.splits["test"][6:7]])
    (entry,) = data.bad
    assert (
        first == 112
        and int(data.splits["test"][0]) == 0
        and entry["replaced_by"] == {"path": "test-0.tar", "byte": entry["replaced_by"]["byte"]}
    )


def batches(data: Dataset, rank: int, start: int = 0) -> list[dict]:
    """An epoch of process `rank` of two, from batch `start` on."""
    progress = SimpleNamespace(total=SimpleNamespace(completed=start), current=SimpleNamespace(ready=start))
    trainer = SimpleNamespace(
        global_rank=rank,
        world_size=2,
        num_training_batches=6,
        overfit_batches=0,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )
    return list(Batches(data.fields, data.splits["train"], 8, trainer, 0, training=True))


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_have_as_many_batches_and_one_that_is_resumed_the_same(spoilt, rank):
    whole = batches(load(spoilt), rank)
    assert len(whole) == 6 and all(len(batch["image"]) == 8 for batch in whole)
    rest = batches(load(spoilt), rank, 4)
    assert [numbers(batch["image"]) for batch in rest] == [numbers(batch["image"]) for batch in whole[4:]]
    for batch in whole:
        assert numbers(batch["image"]) == [
            INSTEAD.get(n - 8, n - 8) for n in batch["index"].tolist()
        ]  # the shard test-0 comes first


def test_no_more_than_the_share_of_all_processes_together(spoilt, tmp_path):
    assert refused(lambda: load(spoilt, 0.001).fields["image"][:]).startswith(
        f"1 of the 120 images in the shards of {spoilt} can't be read, and data.bad_share 0.001 allows 0; mend them, "
        "or allow more; the last is at byte "
    )
    first, second, third = (load(spoilt, 3 / 120) for _ in range(3))
    for data in (first, second, third):
        data.fields["image"].spares.file = tmp_path / "list"
    first.fields["image"][row(first, 60)]  # finds that 63 is bad too
    second.fields["image"][row(second, 63)]
    second.fields["image"][row(second, 99)]
    assert len((tmp_path / "list").read_text().splitlines()) == len(second.bad) == 3
    assert "4 of the 120 images" in refused(lambda: third.fields["image"][row(third, 103)])
    assert "2 of the 120 images" in refused(lambda: load(spoilt, 1 / 120).fields["image"][row(first, 60)])


def test_what_nothing_can_stand_in_for(folder):
    for number in range(112, 120, 3):  # all of class 1 in test
        spoil(folder, number)
    data = load(folder)
    said = refused(lambda: data.fields["image"][data.splits["test"]])
    assert "test-0.tar can't be read" in said and "its split has no other of its class to replace it" in said
    (folder / "val-0.tar").write_bytes(b"")
    assert "val-0.tar has become shorter" in refused(lambda: data.fields["image"][data.splits["validation"]])


def test_skip_is_refused_and_words_are_checked(folder):
    said = refused(lambda: load_data(f"shards:{folder}", bad_samples="skip"))
    assert said.startswith("data.bad_samples is 'skip'") and "how many batches" in said and "set it to replace" in said
    assert "did you mean replace" in refused(lambda: load_data(f"shards:{folder}", bad_samples="replac"))
    assert "data.bad_share is 2" in refused(lambda: load_data(f"shards:{folder}", bad_samples="replace", bad_share=2))


def test_a_run_lists_them_once_and_is_resumed_exactly(spoilt, tmp_path, capsys):
    recipe = {
        "data": {"name": f"shards:{spoilt}", "batch_size": 10, "size": 16, "bad_samples": "replace", "bad_share": 0.05},
        "backbone": {"name": "test_resnet"},
        "task": {"name": "autoencoder", "code": 4, "width": 8},
        "trainer": {"max_steps": 14, "validate_every": 0, "save_every": 1, "accelerator": "cpu"},
    }  # ten steps are an epoch

    def run(out: Path, resume: bool = False) -> Path:
        return zoo.pretrain(recipe, out=out, resume=resume, progress=False)

    whole = run(tmp_path / "whole")
    said = capsys.readouterr().err
    assert said.count("is replaced;") == 1 and f"{whole / 'bad_samples.jsonl'} names each of which this is so" in said
    listed = [json.loads(line) for line in (whole / "bad_samples.jsonl").read_text().splitlines()]
    assert (
        len(listed) == len({(entry["path"], entry["byte"]) for entry in listed})
        and sum(e["path"] == "train-2.tar" for e in listed) == 3
    )
    assert forked(lambda: (at(Pictures, "_ask", 13, kill), run(tmp_path / "again"))) < 0
    again = run(tmp_path / "again", resume=True)
    states = [torch.load(out / "last.ckpt", weights_only=True)["state_dict"] for out in (whole, again)]
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))
    assert sorted((again / "bad_samples.jsonl").read_text().splitlines()) == sorted(
        (whole / "bad_samples.jsonl").read_text().splitlines()
    )
    assert zoo.adapt(again, recipe["data"]["name"], mode="knn").images == 100  # read as the recipe reads them

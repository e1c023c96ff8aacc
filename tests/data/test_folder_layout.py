"""folder:PATH: which classes and splits a folder's structure means."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.folder.layout import Layout, layout_of
from zoo.errors import ZooError


def layout(*files: str) -> Layout:
    return layout_of(sorted(files), Path("/pictures"))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (("a.png", "b.png"), "a.png lies in no class folder"),
        (("a.png", "x/b.png", "y/c.png"), "a.png lies in no class folder"),
        (("x/a.png", "x/y/b.png"), "x is the only folder"),
    ],
)
def test_unlabelled(files, why):
    found = layout(*files)
    assert found.labels is None and found.classes == () and found.why == why


@pytest.mark.parametrize("name", ["val", "validation", "valid", "Val"])
def test_split_folders(name):
    found = layout("train/x/a.png", "train/y/b.png", f"{name}/x/c.png", "test/y/d.png", "test/y/e.png")
    rows = {
        split: [
            sorted(["train/x/a.png", "train/y/b.png", f"{name}/x/c.png", "test/y/d.png", "test/y/e.png"])[row]
            for row in found.splits[split]
        ]
        for split in found.splits
    }
    assert rows == {
        "train": ["train/x/a.png", "train/y/b.png"],
        "validation": [f"{name}/x/c.png"],
        "test": ["test/y/d.png", "test/y/e.png"],
    }
    assert found.classes == ("x", "y")


def test_split_folders_without_classes():
    found = layout("train/a.png", "train/b.png", "test/c.png")
    assert found.labels is None and len(found.splits["test"]) == 1


def test_an_absent_split_comes_out_of_train():
    train, val = [f"train/{k % 2}/{k}.png" for k in range(200)], [f"val/{k % 2}/{k}.png" for k in range(30)]
    files, found = sorted(train + val), layout(*train, *val)
    assert [files[row] for row in found.splits["validation"]] == sorted(val)
    assert all(files[row].startswith("train/") for row in found.splits["test"]) and 8 <= len(found.splits["test"]) <= 36
    alone = layout(*train)
    assert alone.classes == ("0", "1") and all(len(rows) > 5 for rows in alone.splits.values())


def test_a_class_called_train_is_a_class():
    assert layout("bus/a.png", "train/b.png", "car/c.png").classes == ("bus", "car", "train")


def test_images_beside_split_folders_are_refused():
    with pytest.raises(ZooError, match="has folders for splits .test, train., but extra/c.png lies in none of them"):
        layout("train/a.png", "test/b.png", "extra/c.png")


def test_shares_and_their_stability():
    files = [f"{k}.png" for k in range(2000)]
    found, wider = layout(*files), layout(*files, *(f"new{k}.png" for k in range(500)))
    sizes = {split: len(rows) for split, rows in found.splits.items()}
    assert abs(sizes["train"] - 1600) < 80 and abs(sizes["validation"] - 200) < 60 and abs(sizes["test"] - 200) < 60
    names, more = sorted(files), sorted([*files, *(f"new{k}.png" for k in range(500))])
    for split, rows in found.splits.items():
        assert {names[row] for row in rows} <= {more[row] for row in wider.splits[split]}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10**6)), min_size=2, max_size=60, unique=True),
    st.booleans(),
)
def test_splits_are_a_partition_with_all_classes_in_train(numbers, labelled):
    found = layout(*(f"class{kind}/{k}.png" if labelled else f"{kind}-{k}.png" for kind, k in numbers))
    rows = sum(found.splits.values(), [])
    assert sorted(rows) == list(range(len(numbers)))
    if found.labels is not None:
        assert {found.labels[row] for row in found.splits["train"]} == set(found.labels)
    if len(numbers) >= 10:
        assert all(found.splits.values())

"""Hubs that are folders: push, list, pull, find, verify, the cache."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil

import pytest
from card_example import METRIC, a_card, write_folder
from hub_server import MODEL, NAME, contents, in_cache

from zoo import card as cards
from zoo.errors import ZooError
from zoo.hub import hub, page
from zoo.hub import push as pushing

# ---- folders -------------------------------------------------------------------------------------


def test_push_list_pull_find(there, tmp_path):
    assert hub.list_checkpoints(there) == [
        {
            "name": NAME,
            "summary": "Two views of one picture should look alike.",
            "task": "simclr",
            "backbone": "test_resnet",
            "data": "digits",
            "parameters": 372688,
            "bytes": 204803,
            "knn": 91.25,
            "license": "Apache-2.0",
        }
    ]
    assert hub.list_checkpoints(there, "mae*") == []
    pulled = hub.pull(NAME, there)
    made = contents(tmp_path / "made")
    assert {key: value for key, value in contents(pulled).items() if key not in ("zoo.json", "README.md")} == {
        key: value for key, value in made.items() if key not in ("zoo.json", "README.md")
    }
    assert cards.read_card(pulled) == cards.read_card(tmp_path / "made")
    assert (pulled / "README.md").read_text() == page.render(cards.read_card(pulled))
    assert pulled.name == cards.sha256(there / NAME / "zoo.json") and in_cache() == [pulled.name]
    assert hub.find(NAME, there) == pulled == hub.pull(NAME, f"file://{there}")
    assert hub.verify() == hub.verify(there) == hub.verify(pulled) == []


def test_the_hub_is_the_argument_else_the_environment_else_the_shipped_one(there, tmp_path, monkeypatch):
    with pytest.raises(ZooError, match="there is no hub; give --hub or set ZOO_HUB"):
        hub.pull(NAME)
    assert hub.list_checkpoints() == []
    monkeypatch.setattr(hub, "shipped", lambda kind: there)
    assert len(hub.list_checkpoints()) == 1
    other = tmp_path / "other"
    pushing.push(tmp_path / "made", other, name="b")
    monkeypatch.setenv("ZOO_HUB", str(other))
    assert [entry["name"] for entry in hub.list_checkpoints()] == ["b"]
    assert [entry["name"] for entry in hub.list_checkpoints(there)] == [NAME]


def test_a_checkout_with_an_empty_hub_lists_nothing(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(hub, "shipped", lambda kind: tmp_path / "empty")
    assert hub.list_checkpoints() == []
    with pytest.raises(ZooError, match="has no checkpoint x; there is none"):
        hub.pull("x")


def test_find_takes_folders_runs_and_names(there, tmp_path, monkeypatch):
    assert hub.find(tmp_path / "made") == tmp_path / "made"
    shutil.copytree(tmp_path / "made", tmp_path / "run" / "checkpoint")
    assert hub.find(str(tmp_path / "run")) == tmp_path / "run" / "checkpoint"
    (tmp_path / "cut-short").mkdir()
    with pytest.raises(ZooError, match="holds no checkpoint.*--resume"):
        hub.find(tmp_path / "cut-short", there)
    with pytest.raises(ZooError, match="did you mean simclr-tiny"):
        hub.find("simclr-tny", there)
    with pytest.raises(ZooError, match="neither a folder nor the name"):
        hub.find("../no/such", there)
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()  # a folder of that name without a checkpoint doesn't hide the hub's
    assert hub.find(NAME, there) == hub.pull(NAME, there)
    (tmp_path / "made" / MODEL).write_bytes(b"")
    with pytest.raises(ZooError, match=MODEL):
        hub.find(tmp_path / "made")


@pytest.mark.parametrize("name", ["../made", "/etc", "a/../b", "..", ".", "A", "", "a b", "x\0y", "a/b", "-x"])
def test_names_that_lead_elsewhere(there, name, tmp_path):
    with pytest.raises(ZooError):
        pushing.push(tmp_path / "made", there, name=name)
    with pytest.raises(ZooError):
        hub.pull(name, there)
    index = json.loads((there / "index.json").read_text())
    index["checkpoints"][name] = index["checkpoints"][NAME]
    (there / "index.json").write_text(json.dumps(index))
    with pytest.raises(ZooError, match="can't name a checkpoint|control characters"):
        hub.list_checkpoints(there)


def test_a_hub_needs_an_index(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(ZooError, match="is not a hub: it has no index.json"):
        hub.list_checkpoints(tmp_path / "x")


def test_a_missing_file_an_extra_file_and_a_changed_card(there):
    (there / NAME / "notes.txt").write_text("x")
    assert "notes.txt is not in the card" in hub.verify(there)[0]
    hub.pull(NAME, there)  # what isn't listed isn't brought
    assert not list(hub.cache().rglob("notes.txt"))
    (there / NAME / "notes.txt").unlink()
    (there / NAME / "config.json").unlink()
    assert "config.json is missing" in hub.verify(there)[0]
    shutil.rmtree(hub.cache())
    with pytest.raises(ZooError, match="config.json is missing"):
        hub.pull(NAME, there)
    (there / NAME / "zoo.json").write_text(json.dumps(a_card(steps=11)))
    with pytest.raises(ZooError, match="not the one that the index"):
        hub.pull(NAME, there)
    assert "not the card that it was" in hub.verify(there)[0]
    shutil.copytree(there / NAME, there / "stray")
    assert any("stray is a checkpoint that index.json doesn't list" in problem for problem in hub.verify(there))
    assert in_cache() == []


def test_links_in_a_hub_are_not_followed(there, tmp_path):
    os.replace(there / NAME / MODEL, tmp_path / "secret")
    (there / NAME / MODEL).symlink_to(tmp_path / "secret")
    with pytest.raises(ZooError, match="is a link"):
        hub.pull(NAME, there)
    os.replace(there / NAME, tmp_path / "elsewhere")
    (there / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ZooError, match="is a link"):
        hub.pull(NAME, there)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b'{"schema": 1, "checkpoints": []}',
        b'{"schema": 9, "checkpoints": {}, "new": 1}',
        b'{"schema": 1, "checkpoints": {"a": {}}}',
        b'{"schema": 1, "schema": 1, "checkpoints": {}}',
        b"\xff\xfe",
    ],
)
def test_an_index_that_is_none(there, index):
    (there / "index.json").write_bytes(index)
    with pytest.raises(ZooError, match="index.json"):
        hub.list_checkpoints(there)


# ---- pushing -------------------------------------------------------------------------------------


def test_push_refuses_what_nobody_could_use(tmp_path, there):
    with pytest.raises(ZooError, match="has no licence yet"):
        pushing.push(write_folder(tmp_path / "a", license=None), there)
    folder = write_folder(tmp_path / "b", name="b")
    (folder / "old.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ZooError, match=r"old\.pkl is not in the card"):
        pushing.push(folder, there)
    (folder / "old.pkl").rename(folder / ".hidden")  # an editor's leavings stay behind
    (folder / MODEL).write_bytes(b"other")
    with pytest.raises(ZooError, match=MODEL):
        pushing.push(folder, there)
    with pytest.raises(ZooError, match="holds no checkpoint"):
        pushing.push(tmp_path, there)
    with pytest.raises(ZooError, match="can't be pushed to"):
        pushing.push(tmp_path / "made", "https://example.org/hub")
    assert [entry["name"] for entry in hub.list_checkpoints(there)] == [NAME] and hub.verify(there) == []
    assert sorted(path.name for path in there.iterdir()) == ["index.json", NAME]


def test_push_into_a_folder_of_other_things(tmp_path, there):
    with pytest.raises(ZooError, match="is not a hub: it holds"):
        pushing.push(tmp_path / "made", tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".gitkeep").touch()
    assert pushing.push(tmp_path / "made", tmp_path / "new", name="other-name") == str(tmp_path / "new" / "other-name")
    assert cards.read_card(tmp_path / "new" / "other-name")["name"] == "other-name"
    assert hub.verify(tmp_path / "new") == []


@pytest.mark.parametrize("name", ["index.json", "notes"])
def test_what_is_no_checkpoint_is_never_replaced(name, tmp_path, there):
    (there / "notes").mkdir()
    (there / "notes" / "thesis.txt").write_text("years of work")

    def files():
        return {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}

    before = files()
    with pytest.raises(ZooError, match=f"{name} is no checkpoint, and pushing under its name would remove it"):
        pushing.push(tmp_path / "made", there, name=name, replace=True)
    assert files() == before


def test_a_link_is_what_verify_names_too(tmp_path, there):
    (there / NAME).rename(tmp_path / "elsewhere")
    (there / NAME).symlink_to(tmp_path / "elsewhere")
    assert hub.verify(there) == [f"{NAME} is a link, which no pull follows; put the folder itself there"]


@pytest.mark.parametrize(
    "address", ["https://a..b/hub", "http://localhost:1/ü", "file:///x%00y", "~nobody-of-that-name/hub", "n" * 300]
)
def test_addresses_that_can_be_none(address):
    with pytest.raises(ZooError) as caught:
        hub.list_checkpoints(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "n" * 300, "a/" + "n" * 300])
def test_names_that_can_be_none(name, there):
    with pytest.raises(ZooError) as caught:
        hub.find(name, there)
    assert "\n" not in str(caught.value)


def test_a_name_is_taken_once(tmp_path, there):
    assert pushing.push(tmp_path / "made", there) == str(there / NAME)  # the same again is no conflict
    other = write_folder(
        tmp_path / "other", {MODEL: b"other weights", "config.json": b"{}"}, metrics=[METRIC | {"value": 50.0}]
    )
    before = contents(there / NAME)
    with pytest.raises(ZooError, match="has another checkpoint called simclr-tiny"):
        pushing.push(other, there)
    assert contents(there / NAME) == before
    old = hub.pull(NAME, there)
    pushing.push(other, there, replace=True)
    assert hub.list_checkpoints(there)[0]["knn"] == 50.0 and hub.verify(there) == []
    assert sorted(path.name for path in there.iterdir()) == ["index.json", NAME]
    new = hub.pull(NAME, there)
    assert new != old and (new / MODEL).read_bytes() == b"other weights" and hub.verify() == []


def _push(folder, there, name):
    pushing.push(folder, there, name=name)


def test_two_processes_push_at_once(tmp_path, there):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_push, args=(tmp_path / "made", there, f"n{number}")) for number in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert [entry["name"] for entry in hub.list_checkpoints(there)] == [*(f"n{number}" for number in range(6)), NAME]
    assert hub.verify(there) == []


def test_a_full_disk_while_pushing(tmp_path, there, monkeypatch):
    before = {str(path.relative_to(there)): path.read_bytes() for path in there.rglob("*") if path.is_file()}

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ZooError, match="the disk is full and [0-9,]+ bytes are needed"):
            pushing.push(tmp_path / "made", there, name="b")
    assert {str(path.relative_to(there)): path.read_bytes() for path in there.rglob("*") if path.is_file()} == before


# ---- the cache -----------------------------------------------------------------------------------

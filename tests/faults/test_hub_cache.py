"""H3 to H7: processes that meet in the cache of hubs, files that it lost, no network, places that can't be used; pushes
that are killed.

The servers are real, on this machine; see hub_server.
"""

# ruff: noqa: F811, since fixtures are imported

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from card_example import METRIC, write_folder
from hub_server import MODEL, NAME, Server, answer, in_cache, place, there, web  # noqa: F401
from killing import at, forked

from zoo import card as cards
from zoo import cli, paths
from zoo.errors import ZooError
from zoo.hub import hub
from zoo.hub import push as pushing

# ---- H3: two processes ---------------------------------------------------------------------------


def _pull(there, queue):
    queue.put(hub.pull(NAME, there).name)


def test_h3_two_processes_pull_at_once_and_a_lock_was_left_over(there):
    context = multiprocessing.get_context("fork")
    hub.cache().mkdir(parents=True)
    (hub.cache() / f".{cards.sha256(there / NAME / 'zoo.json')}.lock").touch()
    queue = context.Queue()
    children = [context.Process(target=_pull, args=(there, queue)) for _ in range(4)]
    for child in children:
        child.start()
    names = {queue.get(timeout=30) for _ in children}
    for child in children:
        child.join(30)
    assert len(names) == 1 and in_cache() == list(names) and hub.verify() == []


def test_h3_a_puller_killed_half_way_holds_up_nobody(web):
    web.faults += [(MODEL, lambda handler: (answer(handler, web.root / NAME / MODEL, drop=90_000), time.sleep(5)))]
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_pull, args=(web.address, context.Queue()))
    child.start()
    until = time.monotonic() + 20
    while not web.ranges(MODEL) and time.monotonic() < until:
        time.sleep(0.02)
    child.kill()
    child.join(20)
    assert in_cache() == []
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and len(in_cache()) == 1


def test_h3_the_one_that_waits_goes_on_when_the_one_that_brings_is_killed(web):
    """The first holds the lock and hangs; the second waits for it; the first is killed -9."""
    web.faults += [(MODEL, lambda handler: (answer(handler, web.root / NAME / MODEL, drop=90_000), time.sleep(5)))]
    code = f"""
import sys
from zoo.hub import carriers, hub
carriers.STALL = 60
hub.shipped = lambda kind: None
print(hub.pull({NAME!r}, {web.address!r}).name, flush=True)
"""
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while not web.ranges(MODEL) and time.monotonic() < until:
        time.sleep(0.02)
    second = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    while len(web.ranges(f"{NAME}/zoo.json")) + len(web.ranges("index.json")) < 3 and time.monotonic() < until:
        time.sleep(0.02)  # it has read the index, and goes for the lock
    assert second.poll() is None and in_cache() == []
    first.send_signal(signal.SIGKILL)
    name = second.communicate(timeout=60)[0].strip()
    assert first.wait() == -signal.SIGKILL and second.returncode == 0
    assert in_cache() == [name] and hub.verify() == [] and hub.pull(NAME, web.address).name == name


# ---- H4: the cache is damaged later --------------------------------------------------------------


def test_h4_what_the_cache_lost_is_brought_again(there):
    folder = hub.pull(NAME, there)
    for name in (MODEL, "zoo.json"):
        for damage in (b"", b"\0" * 10):
            (folder / name).chmod(0o644)
            (folder / name).write_bytes(damage)
            assert len(hub.verify()) == 1
            assert hub.pull(NAME, there) == folder and hub.verify() == []
    (folder / "config.json").unlink()
    assert "config.json is missing" in hub.verify()[0]
    hub.find(NAME, there)
    assert hub.verify() == []


def test_h4_the_cache_is_not_to_be_written_in(there):
    assert all(path.stat().st_mode & 0o222 == 0 for path in hub.pull(NAME, there).iterdir())


DAMAGE = {
    "truncated": lambda data: data[:-1],
    "flipped": lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
}


@pytest.mark.parametrize("how", DAMAGE)
def test_h4_damage_in_the_cache_is_caught_and_mended_or_said(how, web, monkeypatch, capsys):
    folder = hub.pull(NAME, web.address)
    good = (folder / MODEL).read_bytes()

    def spoil() -> None:
        (folder / MODEL).chmod(0o644)
        (folder / MODEL).write_bytes(DAMAGE[how](good))

    spoil()
    with pytest.raises(
        ZooError,
        match=f"{MODEL} has 204,799 bytes where" if how == "truncated" else f"{MODEL} is not the file .*another sha256",
    ):
        cards.read_card(folder)  # what every load begins with
    if how == "truncated":
        with pytest.raises(ZooError, match="204,799 bytes"):
            cards.read_card(folder, hashed=False)  # by its size alone
    assert cli.main(["verify"]) == 1 and MODEL in capsys.readouterr().out
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    assert cli.main(["pull", NAME, "--hub", web.address]) == 2
    assert (
        f"is not whole in the cache and ZOO_OFFLINE (or --offline) is set; with a network, run once:  zoo pull {NAME} "
        f"--hub {web.address}" in (capsys.readouterr().err)
    )
    monkeypatch.delenv("ZOO_OFFLINE")
    assert hub.pull(NAME, web.address) == folder and (folder / MODEL).read_bytes() == good
    assert cli.main(["verify"]) == 0


# ---- H5: no network ------------------------------------------------------------------------------


def test_h5_offline_uses_what_was_pulled_and_names_what_was_not(web, tmp_path, monkeypatch):
    pushing.push(tmp_path / "made", web.root, name="other")
    folder = hub.pull(NAME, web.address)
    monkeypatch.setenv("ZOO_OFFLINE", "1")

    def blocked(*args, **keywords):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "create_connection", blocked)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    assert hub.pull(NAME, web.address) == hub.find(NAME, web.address) == folder
    assert len(hub.list_checkpoints(web.address)) == 2
    with pytest.raises(
        ZooError,
        match="other of .* is not whole in the cache and ZOO_OFFLINE .* is set; .*:  zoo pull other --hub http://127",
    ):
        hub.pull("other", web.address)
    with pytest.raises(
        ZooError,
        match=f"never read on this machine and ZOO_OFFLINE .*:  zoo pull {NAME} --hub https://example.org/hub$",
    ):
        hub.pull(NAME, "https://example.org/hub")
    with pytest.raises(ZooError, match="ZOO_OFFLINE .*:  zoo pull hf://org/name@main$"):
        hub.pull("hf://org/name@main")
    with pytest.raises(ZooError, match="ZOO_OFFLINE"):
        pushing.push(tmp_path / "made", "hf://org/name")
    assert hub.pull(NAME, web.root) == folder  # folders are no network
    (folder / MODEL).unlink()
    with pytest.raises(ZooError, match="is not whole in the cache"):
        hub.pull(NAME, web.address)


def test_h5_list_info_and_adapt_work_without_a_socket(tmp_path, monkeypatch, capsys):
    """A real network in a hub on a web server, pulled once; then no socket can be opened at all."""
    from checkpoint_example import untrained

    pushing.push(untrained(tmp_path / "small"), tmp_path / "hub")
    web = Server(tmp_path / "hub")
    hub.pull("small", web.address)
    pushing.push(tmp_path / "small", tmp_path / "hub", name="other")
    hub.list_checkpoints(web.address)
    web.server.shutdown()
    web.server.server_close()

    def blocked(*given, **also):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", blocked)
    monkeypatch.setattr(socket, "create_connection", blocked)
    monkeypatch.chdir(tmp_path)
    for words in (
        ["list", "checkpoints"],
        ["info", "small"],
        ["pull", "small"],
        ["adapt", "small", "--data", "digits", "--mode", "knn", "--per-class", "3"],
    ):
        assert cli.main([*words, "--hub", web.address, "--offline"]) == 0, capsys.readouterr().err
    for words in (["list", "tasks"], ["list", "recipes"], ["info", "simclr"], ["info", "digits"]):
        assert cli.main([*words, "--offline"]) == 0
    capsys.readouterr()
    for verb in (["pull", "other"], ["adapt", "other", "--data", "digits", "--mode", "knn"]):
        assert cli.main([*verb, "--hub", web.address, "--offline"]) == 2
        assert capsys.readouterr().err.endswith(f"run once:  zoo pull other --hub {web.address}\n")
    assert "ZOO_OFFLINE" not in os.environ, "the option is of one verb only"


# ---- H6: the place of the cache ------------------------------------------------------------------


def test_h6_too_little_room(there, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ZooError, match="simclr-tiny needs 204,803 bytes in .* and 1 are free"):
        hub.pull(NAME, there)
    assert in_cache() == []


def test_h6_a_full_disk_while_pulling(there, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ZooError, match="the disk is full"):
            hub.pull(NAME, there)
    assert in_cache() == []
    hub.pull(NAME, there)


def test_h6_a_cache_that_cannot_be_made(there, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "file"))
    with pytest.raises(ZooError, match="can't be written"):
        hub.pull(NAME, there)


def test_h6_a_cache_reached_through_a_link(there, tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "near"))
    assert cards.read_card(hub.pull(NAME, there)) and hub.verify() == []


@contextlib.contextmanager
def mounted(folder: Path, *options: str):
    """A file system of its own at `folder`, where one may mount such."""
    folder.mkdir(exist_ok=True)
    made = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("file systems can't be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_h6_a_full_file_system(web, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "disk" / "home"))
    with mounted(tmp_path / "disk", "size=100k"):
        with pytest.raises(ZooError, match="simclr-tiny needs 204,803 bytes in .* are free; make room or set ZOO_HOME"):
            hub.pull(NAME, web.address)
        assert in_cache() == []


def test_h6_a_file_system_that_fills_while_the_file_comes(web, tmp_path, monkeypatch):
    """There was room when it was asked for, and then another process took it."""
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "disk" / "home"))
    monkeypatch.setattr(hub, "_check_space", lambda *given: None)
    with mounted(tmp_path / "disk", "size=100k"):
        with pytest.raises(ZooError, match=f"{MODEL} can't be written: the disk is full and 204,800 bytes are needed"):
            hub.pull(NAME, web.address)
        assert in_cache() == []
        subprocess.run(["mount", "-o", "remount,size=10m", tmp_path / "disk"], check=True)
        assert hub.pull(NAME, web.address) and hub.verify() == []


def test_h6_a_file_system_that_is_read_only(web, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "disk" / "home"))
    with mounted(tmp_path / "disk", "size=10m"):
        folder = hub.pull(NAME, web.address)
        pushing.push(tmp_path / "made", web.root, name="other")
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        assert hub.pull(NAME, web.address) == folder and hub.verify() == []  # reading needs no lock
        with pytest.raises(ZooError, match="can't be written: Read-only file system"):
            hub.pull("other", web.address)


def test_h6_a_cache_on_another_file_system(web, tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", "size=10m"):
        (tmp_path / "near").symlink_to(tmp_path / "disk")
        monkeypatch.setenv("ZOO_HOME", str(tmp_path / "near"))
        folder = hub.pull(NAME, web.address)
        assert (
            os.stat(folder).st_dev != os.stat(tmp_path).st_dev
            and hub.verify() == []
            and hub.pull(NAME, web.root) == folder
        )


# ---- H7: pushes that are killed ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exchanges", "owner", "name", "moment"),
    [
        (True, paths, "_exchange", 0),
        (True, os, "replace", 1),
        (True, os, "replace", 2),
        *((False, os, "replace", moment) for moment in range(2, 6)),
    ],
)
def test_h7_a_push_over_another_killed_at_any_moment(exchanges, owner, name, moment, there, tmp_path, monkeypatch):
    """The name is never without a checkpoint, or (where two folders can't change places in one step) is until the next
    push.
    """
    if not exchanges:
        monkeypatch.setattr(paths, "_exchange", lambda one, other: False)
    other = write_folder(
        tmp_path / "other", {MODEL: b"other weights", "config.json": b"{}"}, metrics=[METRIC | {"value": 50.0}]
    )
    assert forked(lambda: (at(owner, name, moment), pushing.push(other, there, replace=True))) == -signal.SIGKILL
    assert (there / NAME).is_dir() == (exchanges or moment != 3)
    assert [entry["name"] for entry in hub.list_checkpoints(there)] == [NAME]
    swapped = (there / NAME).is_dir() and cards.read_card(there / NAME)["metrics"][0]["value"] == 50.0
    if swapped or not (there / NAME).is_dir():
        with pytest.raises(ZooError, match="if somebody is just pushing it, try again|is missing"):
            hub.pull(NAME, there)
    else:
        hub.pull(NAME, there)
    pushing.push(
        other, there, replace=not swapped
    )  # the very same is there and only the index lacks it: nothing is replaced
    assert hub.verify(there) == [] and hub.list_checkpoints(there)[0]["knn"] == 50.0
    assert hub.pull(NAME, there) and sorted(path.name for path in there.iterdir()) == ["index.json", NAME]


@pytest.mark.parametrize("moment", range(5))
def test_h7_the_first_push_into_a_hub_killed_at_any_moment(moment, there, tmp_path):
    assert (
        forked(lambda: (at(os, "replace", moment), pushing.push(tmp_path / "made", tmp_path / "new")))
        == -signal.SIGKILL
    )
    pushing.push(tmp_path / "made", tmp_path / "new")
    assert hub.verify(tmp_path / "new") == [] and hub.pull(NAME, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["index.json", NAME]

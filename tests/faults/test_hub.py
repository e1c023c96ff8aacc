"""H1 to H6: hubs over a bad network, files that aren't what they were, processes that meet, caches that can't be used.

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
from hub_server import MODEL, NAME, Server, answer, dropping, in_cache, place, stall, status, there, web  # noqa: F401

from zoo import card as cards
from zoo import carriers, cli, hub
from zoo.errors import ZooError

# ---- H1: the connection ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("at", [0, 1, 1000, 150_000, 204_799])
def test_h1_a_dropped_connection_is_resumed(web, at):
    web.faults += [(MODEL, dropping(web, at))]
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and web.ranges(MODEL) == [None, f"bytes={at}-" if at else None]


def test_h1_many_drops_with_progress_end_well(web):
    web.faults += [(MODEL, dropping(web, at)) for at in range(10_000, 200_000, 10_000)]
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and len(web.ranges(MODEL)) == 20


def test_h1_a_server_without_ranges_starts_again(web):
    web.faults += [(MODEL, dropping(web, 1000)), (MODEL, dropping(web, None, ranges=False))]
    hub.pull(NAME, web.address)
    assert hub.verify() == []


def test_h1_no_progress_ends_in_an_error_and_what_came_is_gone_on_with(web):
    web.faults += [(MODEL, dropping(web, 70_000)) for _ in range(carriers.TRIES + 1)]
    with pytest.raises(ZooError, match=r"can't be had \(the connection ended after 70,000 of 204,800 bytes\); what has arrived is kept"):
        hub.pull(NAME, web.address)
    assert in_cache() == []
    del web.requests[:]
    hub.pull(NAME, web.address)
    assert web.ranges(MODEL) == ["bytes=70000-"] and hub.verify() == []


@pytest.mark.parametrize("code", [500, 502, 503, 504, 429])
def test_h1_a_passing_failure_is_tried_again(web, code, place):
    web.faults += [(MODEL, status(code)), ("index.json", status(code)), ("zoo.json", status(code))]
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and len(place) == 3 and all(0 < wait < 2 for wait in place)


def test_h1_a_server_says_when_to_come_back(web, place):
    web.faults += [(MODEL, status(429, Retry_After="7"))]
    hub.pull(NAME, web.address)
    assert place == [7.0]
    shutil.rmtree(hub.cache())
    web.faults += [(MODEL, status(429, Retry_After="9000"))]
    with pytest.raises(ZooError, match="asks to come back in 9000 s"):
        hub.pull(NAME, web.address)


@pytest.mark.parametrize(("code", "words"), [(404, "is not there"), (403, "answers 403"), (401, "answers 401"), (400, "answers 400"), (304, "answers 304")])
def test_h1_a_final_answer_is_not_asked_for_again(web, code, words, place):
    web.faults += [(MODEL, status(code))]
    with pytest.raises(ZooError, match=words):
        hub.pull(NAME, web.address)
    assert place == [] and in_cache() == []


def test_h1_a_stalled_connection_is_given_up_and_resumed(web):
    web.faults += [(MODEL, stall)]
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and web.ranges(MODEL) == [None, "bytes=100-"]


def test_h1_a_trickle_is_given_up(web, monkeypatch):
    monkeypatch.setattr(carriers, "PATIENCE", 0.2)
    monkeypatch.setattr(carriers, "SLOWEST", 10_000)

    def trickle(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "204800")
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(100):
                handler.wfile.write(b"\0" * 10)
                time.sleep(0.02)

    web.faults += [(MODEL, trickle)]
    with pytest.raises(ZooError, match="less than 10000 bytes per second"):
        hub.pull(NAME, web.address)


@pytest.mark.parametrize(("length", "data", "words"), [
    (204_801, None, "204,801 bytes where 204,800 are expected"), (1 << 60, None, "bytes where 204,800"), (10, None, "10 bytes where 204,800"),
    (-1, bytes(204_801), "sends more than the 204,800 bytes"), (None, b"short", "5 bytes where 204,800")])
def test_h1_a_wrong_length(web, length, data, words):
    web.faults += [(MODEL, lambda handler: answer(handler, web.root / NAME / MODEL, length=length, data=data))] * 2
    with pytest.raises(ZooError, match=words):
        hub.pull(NAME, web.address)
    assert in_cache() == []


def test_h1_an_endless_index_is_cut_off(web, monkeypatch):
    monkeypatch.setattr(hub, "LARGEST", 1000)
    web.faults += [("index.json", lambda handler: answer(handler, web.root, length=-1, data=b"x" * 100_000))]
    with pytest.raises(ZooError, match="sends more than the 1,000 bytes"):
        hub.list_checkpoints(web.address)


@pytest.mark.parametrize("target", ["http://other.example/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://10.0.0.1/x", "data:,x", "//other/x",
                                    "https://u:p@example.org/x", "http://127.0.0.1.evil.example/x", "gopher://x/", "http://[::1", "javascript:x"])
def test_h1_redirects_that_are_not_followed(web, target, monkeypatch):
    opened = []
    real = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda address, *a, **k: (opened.append(address[0]), real(address, *a, **k))[1])
    web.faults += [(MODEL, status(302, Location=target))]
    with pytest.raises(ZooError, match="redirects to|only https|is no valid"):
        hub.pull(NAME, web.address)
    assert set(opened) == {"127.0.0.1"} and in_cache() == []


def test_h1_an_endless_redirect_ends(web):
    web.faults += [(MODEL, status(302, Location=f"{web.address}/{NAME}/{MODEL}"))] * 50
    with pytest.raises(ZooError, match="answers 302"):
        hub.pull(NAME, web.address)


def test_h1_a_refused_connection_is_a_sentence(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ZooError, match="can't be had .*refused"):
        hub.pull(NAME, address)


# ---- H2: other content of the same size --------------------------------------------------------------------------------------

@pytest.mark.parametrize("file", [MODEL, "zoo.json", "config.json"])
def test_h2_same_size_corruption(web, file):
    data = bytearray((web.root / NAME / file).read_bytes())
    data[len(data) // 2] ^= 1
    web.faults += [(f"{NAME}/{file}", lambda handler: answer(handler, web.root, data=bytes(data)))]
    with pytest.raises(ZooError, match="sha256"):
        hub.pull(NAME, web.address)
    assert in_cache() == [] and not list(hub.cache().rglob(MODEL)) + list(hub.cache().rglob("zoo.json")) or file == "config.json"
    hub.pull(NAME, web.address)                     # the server was mended
    assert hub.verify() == []


def test_h2_what_was_kept_of_another_file_is_dropped(web):
    web.faults += [(MODEL, dropping(web, 70_000)) for _ in range(carriers.TRIES + 1)]
    with pytest.raises(ZooError):
        hub.pull(NAME, web.address)
    part = next(hub.cache().glob(f".*.part/{MODEL}"))
    part.write_bytes(b"\xff" * 70_000)
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and web.ranges(MODEL)[-2:] == ["bytes=70000-", None]


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"\xff" + d[1:], lambda d: d + b"x", lambda d: b""])
def test_h2_damage_in_a_hub_reaches_nobody(there, damage):
    path = there / NAME / MODEL
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ZooError, match=MODEL):
        hub.pull(NAME, there)
    assert in_cache() == [] and len(hub.verify(there)) == 1


@pytest.mark.parametrize("file", [MODEL, "zoo.json"])
def test_h2_the_command_line_refuses_and_keeps_nothing(web, file, capsys):
    data = bytearray((web.root / NAME / file).read_bytes())
    data[-2] ^= 1
    web.faults += [(f"{NAME}/{file}", lambda handler: answer(handler, web.root, data=bytes(data)))]
    assert cli.main(["pull", NAME, "--hub", web.address]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "sha256" in err and in_cache() == [] and not list(hub.cache().rglob(file))


# ---- H3: two processes -------------------------------------------------------------------------------------------------------

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
from zoo import carriers, hub
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
        time.sleep(0.02)                            # it has read the index, and goes for the lock
    assert second.poll() is None and in_cache() == []
    first.send_signal(signal.SIGKILL)
    name = second.communicate(timeout=60)[0].strip()
    assert first.wait() == -signal.SIGKILL and second.returncode == 0
    assert in_cache() == [name] and hub.verify() == [] and hub.pull(NAME, web.address).name == name


# ---- H4: the cache is damaged later ------------------------------------------------------------------------------------------

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


DAMAGE = {"truncated": lambda data: data[:-1], "flipped": lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]}


@pytest.mark.parametrize("how", DAMAGE)
def test_h4_damage_in_the_cache_is_caught_and_mended_or_said(how, web, monkeypatch, capsys):
    folder = hub.pull(NAME, web.address)
    good = (folder / MODEL).read_bytes()

    def spoil() -> None:
        (folder / MODEL).chmod(0o644)
        (folder / MODEL).write_bytes(DAMAGE[how](good))

    spoil()
    with pytest.raises(ZooError, match=f"{MODEL} has 204,799 bytes where" if how == "truncated" else f"{MODEL} is not the file .*another sha256"):
        cards.read_card(folder)                     # what every load begins with
    if how == "truncated":
        with pytest.raises(ZooError, match="204,799 bytes"):
            cards.read_card(folder, hashed=False)   # by its size alone
    assert cli.main(["verify"]) == 1 and MODEL in capsys.readouterr().out
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    assert cli.main(["pull", NAME, "--hub", web.address]) == 2
    assert f"is not whole in the cache and ZOO_OFFLINE (or --offline) is set; with a network, run once:  zoo pull {NAME} --hub {web.address}" in (
        capsys.readouterr().err)
    monkeypatch.delenv("ZOO_OFFLINE")
    assert hub.pull(NAME, web.address) == folder and (folder / MODEL).read_bytes() == good
    assert cli.main(["verify"]) == 0


# ---- H5: no network ----------------------------------------------------------------------------------------------------------

def test_h5_offline_uses_what_was_pulled_and_names_what_was_not(web, tmp_path, monkeypatch):
    hub.push(tmp_path / "made", web.root, name="other")
    folder = hub.pull(NAME, web.address)
    monkeypatch.setenv("ZOO_OFFLINE", "1")

    def blocked(*args, **keywords):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "create_connection", blocked)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    assert hub.pull(NAME, web.address) == hub.find(NAME, web.address) == folder
    assert len(hub.list_checkpoints(web.address)) == 2
    with pytest.raises(ZooError, match="other of .* is not whole in the cache and ZOO_OFFLINE .* is set; .*:  zoo pull other --hub http://127"):
        hub.pull("other", web.address)
    with pytest.raises(ZooError, match=f"never read on this machine and ZOO_OFFLINE .*:  zoo pull {NAME} --hub https://example.org/hub$"):
        hub.pull(NAME, "https://example.org/hub")
    with pytest.raises(ZooError, match="ZOO_OFFLINE .*:  zoo pull hf://org/name@main$"):
        hub.pull("hf://org/name@main")
    with pytest.raises(ZooError, match="ZOO_OFFLINE"):
        hub.push(tmp_path / "made", "hf://org/name")
    assert hub.pull(NAME, web.root) == folder        # folders are no network
    (folder / MODEL).unlink()
    with pytest.raises(ZooError, match="is not whole in the cache"):
        hub.pull(NAME, web.address)


def test_h5_list_info_and_adapt_work_without_a_socket(tmp_path, monkeypatch, capsys):
    """A real network in a hub on a web server, pulled once; then no socket can be opened at all."""
    from checkpoint_example import untrained

    hub.push(untrained(tmp_path / "small"), tmp_path / "hub")
    web = Server(tmp_path / "hub")
    hub.pull("small", web.address)
    hub.push(tmp_path / "small", tmp_path / "hub", name="other")
    hub.list_checkpoints(web.address)
    web.server.shutdown()
    web.server.server_close()

    def blocked(*given, **also):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", blocked)
    monkeypatch.setattr(socket, "create_connection", blocked)
    monkeypatch.chdir(tmp_path)
    for words in (["list", "checkpoints"], ["info", "small"], ["pull", "small"], ["adapt", "small", "--data", "digits", "--mode", "knn", "--per-class", "3"]):
        assert cli.main([*words, "--hub", web.address, "--offline"]) == 0, capsys.readouterr().err
    for words in (["list", "tasks"], ["list", "recipes"], ["info", "simclr"], ["info", "digits"]):
        assert cli.main([*words, "--offline"]) == 0
    capsys.readouterr()
    for verb in (["pull", "other"], ["adapt", "other", "--data", "digits", "--mode", "knn"]):
        assert cli.main([*verb, "--hub", web.address, "--offline"]) == 2
        assert capsys.readouterr().err.endswith(f"run once:  zoo pull other --hub {web.address}\n")
    assert "ZOO_OFFLINE" not in os.environ, "the option is of one verb only"


# ---- H6: the place of the cache ----------------------------------------------------------------------------------------------

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
    made = shutil.which("mount") and subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], capture_output=True, check=False)
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
        hub.push(tmp_path / "made", web.root, name="other")
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        assert hub.pull(NAME, web.address) == folder and hub.verify() == []        # reading needs no lock
        with pytest.raises(ZooError, match="can't be written: Read-only file system"):
            hub.pull("other", web.address)


def test_h6_a_cache_on_another_file_system(web, tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", "size=10m"):
        (tmp_path / "near").symlink_to(tmp_path / "disk")
        monkeypatch.setenv("ZOO_HOME", str(tmp_path / "near"))
        folder = hub.pull(NAME, web.address)
        assert os.stat(folder).st_dev != os.stat(tmp_path).st_dev and hub.verify() == [] and hub.pull(NAME, web.root) == folder

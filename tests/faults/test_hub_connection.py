"""H1 and H2: hubs over a bad network, and files that aren't what their hub says.

The servers are real, on this machine; see hub_server.
"""

# ruff: noqa: F811, since fixtures are imported

from __future__ import annotations

import contextlib
import shutil
import socket
import time

import pytest
from hub_server import MODEL, NAME, answer, dropping, in_cache, place, stall, status, there, web  # noqa: F401

from zoo import cli
from zoo.errors import ZooError
from zoo.hub import carriers, hub

# ---- H1: the connection --------------------------------------------------------------------------


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
    with pytest.raises(
        ZooError, match=r"can't be had \(the connection ended after 70,000 of 204,800 bytes\); what has arrived is kept"
    ):
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


@pytest.mark.parametrize(
    ("code", "words"),
    [(404, "is not there"), (403, "answers 403"), (401, "answers 401"), (400, "answers 400"), (304, "answers 304")],
)
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


@pytest.mark.parametrize(
    ("length", "data", "words"),
    [
        (204_801, None, "204,801 bytes where 204,800 are expected"),
        (1 << 60, None, "bytes where 204,800"),
        (10, None, "10 bytes where 204,800"),
        (-1, bytes(204_801), "sends more than the 204,800 bytes"),
        (None, b"short", "5 bytes where 204,800"),
    ],
)
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


@pytest.mark.parametrize(
    "target",
    [
        "http://other.example/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://10.0.0.1/x",
        "data:,x",
        "//other/x",
        "https://u:p@example.org/x",
        "http://127.0.0.1.evil.example/x",
        "gopher://x/",
        "http://[::1",
        "javascript:x",
    ],
)
def test_h1_redirects_that_are_not_followed(web, target, monkeypatch):
    opened = []
    real = socket.create_connection
    monkeypatch.setattr(
        socket, "create_connection", lambda address, *a, **k: (opened.append(address[0]), real(address, *a, **k))[1]
    )
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


# ---- H2: other content of the same size ----------------------------------------------------------


@pytest.mark.parametrize("file", [MODEL, "zoo.json", "config.json"])
def test_h2_same_size_corruption(web, file):
    data = bytearray((web.root / NAME / file).read_bytes())
    data[len(data) // 2] ^= 1
    web.faults += [(f"{NAME}/{file}", lambda handler: answer(handler, web.root, data=bytes(data)))]
    with pytest.raises(ZooError, match="sha256"):
        hub.pull(NAME, web.address)
    assert (
        in_cache() == []
        and not list(hub.cache().rglob(MODEL)) + list(hub.cache().rglob("zoo.json"))
        or file == "config.json"
    )
    hub.pull(NAME, web.address)  # the server was mended
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
    assert (
        out == ""
        and err.count("\n") == 1
        and "sha256" in err
        and in_cache() == []
        and not list(hub.cache().rglob(file))
    )

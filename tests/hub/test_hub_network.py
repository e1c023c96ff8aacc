"""Hubs over a network, offline, and Hugging Face with its client's functions replaced."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
import types
from pathlib import Path

import pytest
from card_example import write_folder
from hub_server import MODEL, NAME, answer, dropping, in_cache, stall, status

from zoo import card as cards
from zoo import carriers, hub
from zoo.carriers import open_carrier
from zoo.errors import ZooError

# ---- over a network ------------------------------------------------------------------------------------------------------

def test_pull_over_the_web(web, tmp_path):
    folder = hub.pull(NAME, web.address)
    assert (folder / MODEL).read_bytes() == (tmp_path / "made" / MODEL).read_bytes() and hub.verify() == []
    assert hub.list_checkpoints(web.address + "/") == hub.list_checkpoints(web.root)
    asked = len(web.ranges(MODEL))
    assert hub.pull(NAME, web.address) == folder and len(web.ranges(MODEL)) == asked == 1


@pytest.mark.parametrize("at", [0, 1, 1000, 150_000, 204_799])
def test_a_dropped_connection_is_resumed(web, at):
    web.faults += [(MODEL, dropping(web, at))]
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and web.ranges(MODEL) == [None, f"bytes={at}-" if at else None]


def test_many_drops_with_progress_end_well(web):
    web.faults += [(MODEL, dropping(web, at)) for at in range(10_000, 200_000, 10_000)]
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and len(web.ranges(MODEL)) == 20


def test_a_server_without_ranges_starts_again(web):
    web.faults += [(MODEL, dropping(web, 1000)), (MODEL, dropping(web, None, ranges=False))]
    hub.pull(NAME, web.address)
    assert hub.verify() == []


def test_no_progress_ends_in_an_error_and_what_came_is_gone_on_with(web):
    web.faults += [(MODEL, dropping(web, 70_000)) for _ in range(carriers.TRIES + 1)]
    with pytest.raises(ZooError, match=r"can't be had \(the connection ended after 70,000 of 204,800 bytes\); what has arrived is kept"):
        hub.pull(NAME, web.address)
    assert in_cache() == []
    del web.requests[:]
    hub.pull(NAME, web.address)
    assert web.ranges(MODEL) == ["bytes=70000-"] and hub.verify() == []


def test_what_was_kept_of_another_file_is_dropped(web):
    web.faults += [(MODEL, dropping(web, 70_000)) for _ in range(carriers.TRIES + 1)]
    with pytest.raises(ZooError):
        hub.pull(NAME, web.address)
    part = next(hub.cache().glob(f".*.part/{MODEL}"))
    part.write_bytes(b"\xff" * 70_000)
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and web.ranges(MODEL)[-2:] == ["bytes=70000-", None]


@pytest.mark.parametrize("code", [500, 502, 503, 504, 429])
def test_a_passing_failure_is_tried_again(web, code, place):
    web.faults += [(MODEL, status(code)), ("index.json", status(code)), ("zoo.json", status(code))]
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and len(place) == 3 and all(0 < wait < 2 for wait in place)


def test_a_server_says_when_to_come_back(web, place):
    web.faults += [(MODEL, status(429, Retry_After="7"))]
    hub.pull(NAME, web.address)
    assert place == [7.0]
    shutil.rmtree(hub.cache())
    web.faults += [(MODEL, status(429, Retry_After="9000"))]
    with pytest.raises(ZooError, match="asks to come back in 9000 s"):
        hub.pull(NAME, web.address)


@pytest.mark.parametrize(("code", "words"), [(404, "is not there"), (403, "answers 403"), (401, "answers 401"), (400, "answers 400"), (304, "answers 304")])
def test_a_final_answer_is_not_asked_for_again(web, code, words, place):
    web.faults += [(MODEL, status(code))]
    with pytest.raises(ZooError, match=words):
        hub.pull(NAME, web.address)
    assert place == [] and in_cache() == []


def test_a_stalled_connection_is_given_up_and_resumed(web):
    web.faults += [(MODEL, stall)]
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and web.ranges(MODEL) == [None, "bytes=100-"]


def test_a_trickle_is_given_up(web, monkeypatch):
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
def test_a_wrong_length(web, length, data, words):
    web.faults += [(MODEL, lambda handler: answer(handler, web.root / NAME / MODEL, length=length, data=data))] * 2
    with pytest.raises(ZooError, match=words):
        hub.pull(NAME, web.address)
    assert in_cache() == []


def test_no_length_at_all_is_fine(web):
    web.faults += [(end, lambda handler: answer(handler, web.root / handler.path.lstrip("/"), length=-1)) for end in ("index.json", MODEL)]
    hub.pull(NAME, web.address)
    assert hub.verify() == []


def test_an_endless_index_is_cut_off(web, monkeypatch):
    monkeypatch.setattr(hub, "LARGEST", 1000)
    web.faults += [("index.json", lambda handler: answer(handler, web.root, length=-1, data=b"x" * 100_000))]
    with pytest.raises(ZooError, match="sends more than the 1,000 bytes"):
        hub.list_checkpoints(web.address)


@pytest.mark.parametrize("file", [MODEL, "zoo.json", "config.json"])
def test_same_size_corruption(web, file):
    data = bytearray((web.root / NAME / file).read_bytes())
    data[len(data) // 2] ^= 1
    web.faults += [(f"{NAME}/{file}", lambda handler: answer(handler, web.root, data=bytes(data)))]
    with pytest.raises(ZooError, match="sha256"):
        hub.pull(NAME, web.address)
    assert in_cache() == [] and not list(hub.cache().rglob(MODEL)) + list(hub.cache().rglob("zoo.json")) or file == "config.json"
    hub.pull(NAME, web.address)                     # the server was mended
    assert hub.verify() == []


@pytest.mark.parametrize("target", ["http://other.example/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://10.0.0.1/x", "data:,x", "//other/x",
                                    "https://u:p@example.org/x", "http://127.0.0.1.evil.example/x", "gopher://x/", "http://[::1", "javascript:x"])
def test_redirects_that_are_not_followed(web, target, monkeypatch):
    opened = []
    real = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda address, *a, **k: (opened.append(address[0]), real(address, *a, **k))[1])
    web.faults += [(MODEL, status(302, Location=target))]
    with pytest.raises(ZooError, match="redirects to|only https|is no valid"):
        hub.pull(NAME, web.address)
    assert set(opened) == {"127.0.0.1"} and in_cache() == []


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_within_this_machine_keeps_the_range(web, code):
    web.faults += [(MODEL, dropping(web, 1000)), (MODEL, status(code, Location=f"{web.address}/{NAME}/{MODEL}"))]
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and web.ranges(MODEL) == [None, "bytes=1000-", "bytes=1000-"]


def test_an_endless_redirect_ends(web):
    web.faults += [(MODEL, status(302, Location=f"{web.address}/{NAME}/{MODEL}"))] * 50
    with pytest.raises(ZooError, match="answers 302"):
        hub.pull(NAME, web.address)


def test_from_outside_nothing_leads_to_this_machine():
    for url in ("https://127.0.0.1/x", "http://localhost/x", "https://[::1]/x"):
        with pytest.raises(ZooError, match="this machine itself"):
            carriers.check_url(url, "https://example.org/hub/x")
    carriers.check_url("https://elsewhere.example/x", "https://example.org/hub/x")
    with pytest.raises(ZooError, match="only https"):
        carriers.check_url("http://example.org/x", "https://example.org/x")


@pytest.mark.parametrize("address", [
    "http://example.org/hub", "https://u:p@example.org/hub", "https://example.org/hub?token=abcdef", "https://example.org/#x", "https:///hub", "s3://bucket/x",
    "ftp://example.org/x", "file://other/srv", "hf://a", "hf://a/b/c", "hf://a/b@../../x", "hf://a/b@", "hf://../b", "hf://a/b@x/../y", "hf://a/b@x y"])
def test_addresses_that_are_none(address):
    with pytest.raises(ZooError) as caught:
        hub.list_checkpoints(address)
    assert "u:p" not in str(caught.value) and "abcdef" not in str(caught.value)


def test_a_refused_connection_is_a_sentence(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ZooError, match="can't be had .*refused"):
        hub.pull(NAME, address)


# ---- without a network ---------------------------------------------------------------------------------------------------

def test_offline_uses_what_was_pulled_and_names_what_was_not(web, tmp_path, monkeypatch):
    hub.push(tmp_path / "made", web.root, name="other")
    folder = hub.pull(NAME, web.address)
    monkeypatch.setenv("ZOO_OFFLINE", "1")

    def blocked(*args, **keywords):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "create_connection", blocked)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    assert hub.pull(NAME, web.address) == hub.find(NAME, web.address) == folder
    assert len(hub.list_checkpoints(web.address)) == 2
    with pytest.raises(ZooError, match="other of .* is not whole in the cache and ZOO_OFFLINE is set; .*`zoo pull other`"):
        hub.pull("other", web.address)
    with pytest.raises(ZooError, match="never read on this machine and ZOO_OFFLINE is set"):
        hub.pull(NAME, "https://example.org/hub")
    with pytest.raises(ZooError, match="ZOO_OFFLINE"):
        hub.pull("hf://org/name@main")
    with pytest.raises(ZooError, match="ZOO_OFFLINE"):
        hub.push(tmp_path / "made", "hf://org/name")
    assert hub.pull(NAME, web.root) == folder        # folders are no network
    (folder / MODEL).unlink()
    with pytest.raises(ZooError, match="is not whole in the cache"):
        hub.pull(NAME, web.address)


# ---- Hugging Face, with its client's functions replaced ------------------------------------------------------------------

class Repository:
    """Stands in for huggingface_hub: one repository in a folder."""

    def __init__(self, folder: Path, monkeypatch):
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError

        self.folder, self.calls, self.uploads, self.error = folder, [], [], EntryNotFoundError
        monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda repo, path, revision=None: path)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", self.metadata)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)

    def metadata(self, path):
        if not (self.folder / path).is_file():
            raise self.error(f"no {path}")
        return types.SimpleNamespace(size=(self.folder / path).stat().st_size)

    def download(self, repo, path, revision=None, local_dir=None):
        self.calls.append((repo, path, revision))
        (Path(local_dir) / ".cache").mkdir(exist_ok=True)
        (Path(local_dir) / ".cache" / "notes").touch()
        return str(shutil.copy(self.folder / path, Path(local_dir) / path))

    def create_repo(self, repo, exist_ok):
        assert exist_ok

    def file_exists(self, repo, path, revision=None):
        return (self.folder / path).exists()

    def upload_folder(self, repo_id, folder_path, revision, commit_message, delete_patterns):
        self.uploads.append((repo_id, revision, delete_patterns))
        shutil.copytree(folder_path, self.folder, dirs_exist_ok=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    return Repository(tmp_path / "repository", monkeypatch)


def test_push_to_and_pull_from_a_repository(repository, tmp_path):
    made = write_folder(tmp_path / "made")
    assert hub.push(made, "hf://org/name", name="renamed") == "hf://org/name"
    assert repository.uploads == [("org/name", None, None)]
    assert sorted(path.name for path in repository.folder.iterdir()) == ["README.md", "config.json", MODEL, "zoo.json"]
    with pytest.raises(ZooError, match="holds a checkpoint already"):
        hub.push(made, "hf://org/name")
    hub.push(made, "hf://org/name@main", name="renamed", replace=True)
    assert repository.uploads[1:] == [("org/name", "main", ["*"])]

    address = f"hf://org/name@{'a' * 40}"
    folder = hub.pull(address)
    assert folder == hub.find(address) == hub.pull("renamed", address) and hub.verify() == []
    assert {(repo, revision) for repo, _, revision in repository.calls} == {("org/name", "a" * 40)}
    assert [entry["name"] for entry in hub.list_checkpoints(address)] == ["renamed"]
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", MODEL, "zoo.json"}


def test_the_client_of_hugging_face_is_not_taken_at_its_word(repository, tmp_path, monkeypatch):
    hub.push(write_folder(tmp_path / "made"), "hf://org/name")
    (repository.folder / MODEL).write_bytes(bytes(204_800))       # same size, other bytes: its own check passes
    with pytest.raises(ZooError, match="size or sha256"):
        hub.pull("hf://org/name")
    (repository.folder / MODEL).write_bytes(bytes(204_801))
    with pytest.raises(ZooError, match="204,801 bytes where 204,800 are expected"):
        hub.pull("hf://org/name")
    (repository.folder / MODEL).unlink()
    with pytest.raises(ZooError, match=f"has no {MODEL}, doesn't exist, or needs a login"):
        hub.pull("hf://org/name")
    (repository.folder / "zoo.json").write_bytes(b" " * (cards.LARGEST + 1))
    with pytest.raises(ZooError, match="bytes where 1,048,576 are expected"):
        hub.pull("hf://org/name")
    monkeypatch.setattr(repository, "metadata", None)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: 1 / 0)
    with pytest.raises(ZooError, match="can't be had: division by zero"):
        hub.pull("hf://org/name")
    assert in_cache() == []


def test_a_bad_revision_never_reaches_the_client(repository):
    for address in ("hf://org/name@../../x", "hf://org/name@a/b", "hf://org/..", "hf://org/name@refs/pr/1"):
        with pytest.raises(ZooError, match="is no address"):
            hub.pull(address)
        with pytest.raises(ZooError):
            hub.push(Path("x"), address)
    assert repository.calls == [] and repository.uploads == []


def test_carriers_say_what_they_are():
    kinds = [(carrier.remote, carrier.single) for carrier in map(open_carrier, ("x", "https://example.org/x", "hf://a/b"))]
    assert kinds == [(False, False), (True, False), (True, True)]

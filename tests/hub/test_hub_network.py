"""Hubs over a network, offline, and Hugging Face with its client's functions replaced."""

from __future__ import annotations

import shutil
import types
from pathlib import Path

import pytest
from card_example import write_folder
from hub_server import MODEL, NAME, answer, dropping, in_cache, status

from zoo import card as cards
from zoo.errors import ZooError
from zoo.hub import carriers, hub
from zoo.hub import push as pushing
from zoo.hub.carriers import open_carrier

# ---- over a network ------------------------------------------------------------------------------


def test_pull_over_the_web(web, tmp_path):
    folder = hub.pull(NAME, web.address)
    assert (folder / MODEL).read_bytes() == (tmp_path / "made" / MODEL).read_bytes() and hub.verify() == []
    assert hub.list_checkpoints(web.address + "/") == hub.list_checkpoints(web.root)
    asked = len(web.ranges(MODEL))
    assert hub.pull(NAME, web.address) == folder and len(web.ranges(MODEL)) == asked == 1


def test_no_length_at_all_is_fine(web):
    web.faults += [
        (end, lambda handler: answer(handler, web.root / handler.path.lstrip("/"), length=-1))
        for end in ("index.json", MODEL)
    ]
    hub.pull(NAME, web.address)
    assert hub.verify() == []


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_within_this_machine_keeps_the_range(web, code):
    web.faults += [(MODEL, dropping(web, 1000)), (MODEL, status(code, Location=f"{web.address}/{NAME}/{MODEL}"))]
    hub.pull(NAME, web.address)
    assert hub.verify() == [] and web.ranges(MODEL) == [None, "bytes=1000-", "bytes=1000-"]


def test_from_outside_nothing_leads_to_this_machine():
    for url in ("https://127.0.0.1/x", "http://localhost/x", "https://[::1]/x"):
        with pytest.raises(ZooError, match="this machine itself"):
            carriers.check_url(url, "https://example.org/hub/x")
    carriers.check_url("https://elsewhere.example/x", "https://example.org/hub/x")
    with pytest.raises(ZooError, match="only https"):
        carriers.check_url("http://example.org/x", "https://example.org/x")


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/hub",
        "https://u:p@example.org/hub",
        "https://example.org/hub?token=abcdef",
        "https://example.org/#x",
        "https:///hub",
        "s3://bucket/x",
        "ftp://example.org/x",
        "file://other/srv",
        "hf://a",
        "hf://a/b/c",
        "hf://a/b@../../x",
        "hf://a/b@",
        "hf://../b",
        "hf://a/b@x/../y",
        "hf://a/b@x y",
    ],
)
def test_addresses_that_are_none(address):
    with pytest.raises(ZooError) as caught:
        hub.list_checkpoints(address)
    assert "u:p" not in str(caught.value) and "abcdef" not in str(caught.value)


# ---- without a network ---------------------------------------------------------------------------

# ---- Hugging Face, with its client's functions replaced ------------------------------------------


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
    assert pushing.push(made, "hf://org/name", name="renamed") == "hf://org/name"
    assert repository.uploads == [("org/name", None, None)]
    assert sorted(path.name for path in repository.folder.iterdir()) == ["README.md", "config.json", MODEL, "zoo.json"]
    with pytest.raises(ZooError, match="holds a checkpoint already"):
        pushing.push(made, "hf://org/name")
    pushing.push(made, "hf://org/name@main", name="renamed", replace=True)
    assert repository.uploads[1:] == [("org/name", "main", ["*"])]

    address = f"hf://org/name@{'a' * 40}"
    folder = hub.pull(address)
    assert folder == hub.find(address) == hub.pull("renamed", address) and hub.verify() == []
    assert {(repo, revision) for repo, _, revision in repository.calls} == {("org/name", "a" * 40)}
    assert [entry["name"] for entry in hub.list_checkpoints(address)] == ["renamed"]
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", MODEL, "zoo.json"}


def test_the_client_of_hugging_face_is_not_taken_at_its_word(repository, tmp_path, monkeypatch):
    pushing.push(write_folder(tmp_path / "made"), "hf://org/name")
    (repository.folder / MODEL).write_bytes(bytes(204_800))  # same size, other bytes: its own check passes
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
            pushing.push(Path("x"), address)
    assert repository.calls == [] and repository.uploads == []


def test_carriers_say_what_they_are():
    kinds = [
        (carrier.remote, carrier.single) for carrier in map(open_carrier, ("x", "https://example.org/x", "hf://a/b"))
    ]
    assert kinds == [(False, False), (True, False), (True, True)]

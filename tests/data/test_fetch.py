"""Clients that fail, stall or aren't there, and archives that mean harm. The clients are stand-ins."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from zoo.data.sources import fetch
from zoo.errors import ZooError

FILES = {"set/a.bin": b"first" * 100, "set/b.bin": b"second" * 100}


def wanted(path: str) -> str | None:
    name = path.rsplit("/", 1)[-1].removesuffix(".gz")
    return f"kept/{name}" if name.endswith(".bin") else None


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz", links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


def make_deb(path: Path, files: dict[str, bytes], packing: str = "xz") -> Path:
    """A Debian package: an `ar` archive of three members, the last one a tar of the files."""
    data = make_tar(path.with_suffix(f".data.{packing}"), files, f"w:{packing}")
    members = {"debian-binary": b"2.0\n", "control.tar.gz": b"odd", f"data.tar.{packing}": data.read_bytes()}
    data.unlink()
    out = b"!<arch>\n"
    for name, body in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    path.write_bytes(out)
    return path


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def make_program(folder: Path, name: str, body: str) -> None:
    """An executable that stands in for a client: this Python, with `folder`, `words` and `sys` at hand."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(
        f"#!{sys.executable} -IS\nimport sys, pathlib, time\nwords = sys.argv[1:]\n"
        f"folder = pathlib.Path({str(folder)!r})\n{body}\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


MAKERS = {
    "tar": lambda at: make_tar(at / "x.tar", FILES, "w"),
    "tgz": lambda at: make_tar(at / "x.tgz", FILES),
    "tar.xz": lambda at: make_tar(at / "x.tar.xz", {f"./{name}": data for name, data in FILES.items()}, "w:xz"),
    "deb xz": lambda at: make_deb(at / "x.deb", FILES),
    "deb gz": lambda at: make_deb(at / "x.deb", FILES, "gz"),
    "folder": lambda at: make_folder(at / "x", {"deep/" + name: data for name, data in FILES.items()}),
    "folder of packed files": lambda at: make_folder(at / "x", {f"{n}.gz": gzip.compress(d) for n, d in FILES.items()}),
    "folder of archives": lambda at: (
        make_tar(
            make_folder(at / "x", {"set/a.bin": FILES["set/a.bin"]}) / "b.tgz", {"b.bin": FILES["set/b.bin"]}
        ).parent
    ),
    "one raw file": lambda at: make_folder(at / "x", FILES) / "set" / "b.bin",
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_container_gives_the_same_files(tmp_path, kind):
    source = MAKERS[kind](tmp_path)
    out = tmp_path / "out"
    assert fetch.gather(source, wanted, out, 10_000) == {"kept/a.bin", "kept/b.bin"}
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.bin")} == {
        "kept/a.bin": FILES["set/a.bin"],
        "kept/b.bin": FILES["set/b.bin"],
    }


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb isn't installed")
def test_zstd_packages_go_through_dpkg(tmp_path):
    tree = make_folder(tmp_path / "tree", FILES)
    make_folder(
        tree,
        {"DEBIAN/control": b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"},
    )
    built = subprocess.run(["dpkg-deb", "-Zzstd", "--build", str(tree), str(tmp_path / "x.deb")], capture_output=True)
    if built.returncode:
        pytest.skip("this dpkg-deb can't pack with zstd")
    fetch.gather(tmp_path / "x.deb", wanted, tmp_path / "out", 10_000)
    assert (tmp_path / "out/kept/b.bin").read_bytes() == FILES["set/b.bin"]


@pytest.mark.parametrize("name", ["../a.bin", "/etc/a.bin", "set/../../a.bin", "..\\a.bin"])
def test_unsafe_names_are_refused(tmp_path, name):
    source = make_tar(tmp_path / "x.tgz", {name: b"harm"})
    with pytest.raises(ZooError, match="unsafe name"):
        fetch.gather(source, wanted, tmp_path / "out", 10_000)
    assert not list(tmp_path.rglob("*.bin"))


def test_links_are_never_followed_nor_made(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    source = make_tar(tmp_path / "x.tgz", {}, links={"a.bin": str(tmp_path / "secret"), "kept": str(tmp_path)})
    assert fetch.gather(source, wanted, tmp_path / "out", 10_000) == set()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("packed", [True, False])
def test_bombs_stop_at_the_limit(tmp_path, packed):
    zeros = bytes(1 << 20)
    files = {"a.bin.gz": gzip.compress(zeros)} if packed else {"a.bin": zeros}
    source = make_tar(tmp_path / "x.tgz", files)
    with pytest.raises(ZooError, match="unpacks to more"):
        fetch.gather(source, wanted, tmp_path / "out", 5_000)
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.bin")) <= 5_000


def test_unwanted_bulk_stops_too(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "LARGEST_ARCHIVE", 1000)
    source = make_tar(tmp_path / "x.tgz", {"bulk": bytes(2000), "a.bin": b"x"})
    with pytest.raises(ZooError, match="unpacks to more"):
        fetch.gather(source, wanted, tmp_path / "out", 5_000)


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "cut": data[:middle],
            "empty": b"",
            "noise": b"noise" * 300,
            "flipped": data[:middle] + bytes(b ^ 255 for b in data[middle : middle + 40]) + data[middle + 40 :],
        }[how]
    )


@pytest.mark.parametrize("how", ["cut", "empty", "noise", "flipped"])
@pytest.mark.parametrize("kind", ["tgz", "tar.xz", "deb xz", "deb gz"])
def test_damaged_archives_are_a_sentence_with_their_path(tmp_path, kind, how):
    source = MAKERS[kind](tmp_path)
    spoil(source, how)
    with pytest.raises(ZooError, match=str(source)):
        fetch.gather(source, wanted, tmp_path / "out", 10_000)


def test_damaged_packed_file(tmp_path):
    make_folder(tmp_path / "x", {"a.bin.gz": gzip.compress(os.urandom(1000))[:500]})
    with pytest.raises(ZooError, match="a.bin.gz.*damaged"):
        fetch.gather(tmp_path / "x", wanted, tmp_path / "out", 10_000)


def test_what_is_no_source_is_a_sentence(tmp_path):
    with pytest.raises(ZooError, match="neither a file nor a folder"):
        fetch.gather(tmp_path / "absent.tgz", wanted, tmp_path / "out", 10)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ZooError, match="nor an archive"):
        fetch.gather(tmp_path / "notes.txt", wanted, tmp_path / "out", 10)


# Clients


def test_npm_gets_folders_of_ours_and_exact_versions(tmp_path, monkeypatch):
    make_program(
        tmp_path / "bin",
        "npm",
        """
where = pathlib.Path(words[words.index("--pack-destination") + 1])
for flag in ("--cache", "--prefix"):
    assert pathlib.Path(words[words.index(flag) + 1]).is_relative_to(where), flag
assert words[0] == "pack" and "--ignore-scripts" in words
(where / (words[1].replace("@", "-") + ".tgz")).write_text("packed")
""",
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "work").mkdir()
    found = fetch.from_npm("one@1.0.0", "two@2.0.0")(tmp_path / "work")
    assert {path.name for path in found.glob("*.tgz")} == {"one-1.0.0.tgz", "two-2.0.0.tgz"}


def test_apt_gets_folders_of_ours_and_updates_first(tmp_path, monkeypatch):
    make_program(
        tmp_path / "bin",
        "apt-get",
        """
settings = dict(word.split("=", 1) for word in words if "=" in word)
state, cache = pathlib.Path(settings["Dir::State"]), pathlib.Path(settings["Dir::Cache"])
assert (state / "lists" / "partial").is_dir() and (cache / "archives" / "partial").is_dir()
if words[-1] == "update":
    (state / "lists" / "index").write_text("x")
else:
    assert words[-2:] == ["download", "pictures"] and (state / "lists" / "index").exists()
    pathlib.Path("pictures_1_all.deb").write_text("packed")
""",
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "work").mkdir()
    found = fetch.from_apt("pictures")(tmp_path / "work")
    assert (found / "pictures_1_all.deb").exists()


@pytest.mark.parametrize(
    "body, words",
    [
        (
            "print('npm error 404 no such package', file=sys.stderr); print('later'); sys.exit(1)",
            "status 1: npm error 404",
        ),
        ("sys.exit(3)", "status 3: it said nothing"),
        ("sys.exit(0)", "left fewer than 1 files"),
    ],
)
def test_a_failing_client_says_why(tmp_path, monkeypatch, body, words):
    make_program(tmp_path / "bin", "npm", body)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "work").mkdir()
    with pytest.raises(fetch.Unreachable, match=words):
        fetch.from_npm("one@1.0.0")(tmp_path / "work")


def test_absent_clients_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for way, name in ((fetch.from_npm("one@1.0.0"), "npm"), (fetch.from_apt("pictures"), "apt-get")):
        with pytest.raises(fetch.Unreachable, match=f"{name} isn't installed"):
            way(tmp_path)


def test_a_client_that_hangs_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "STALL", 0.5)
    note = tmp_path / "grandchild"
    script = f"sleep 60 & echo $! > {note}; wait"
    begin = time.monotonic()
    with pytest.raises(fetch.Unreachable, match="brought nothing"):
        fetch.run_client(["/bin/sh", "-c", script], tmp_path)
    assert time.monotonic() - begin < 20
    status = Path(f"/proc/{note.read_text().strip()}/stat")
    if Path("/proc/self").exists():  # gone, or a zombie that nobody has reaped yet
        assert not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_slow_client_that_makes_progress_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "STALL", 1.5)
    fetch.run_client(["/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo x; sleep 0.3; done"], tmp_path)
    assert (tmp_path / "client.log").read_text() == "x\n" * 8


def test_torchvision_runs_in_a_child_with_a_time_out(tmp_path):
    fetch.from_torchvision("open(root + '/got', 'w').write(str(socket.getdefaulttimeout()))")(tmp_path)
    assert (tmp_path / "got").read_text() == "15.0"
    import socket

    assert socket.getdefaulttimeout() is None  # ours is as it was

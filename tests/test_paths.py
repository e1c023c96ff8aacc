"""Small files are written whole or not at all, and folders are found where they are."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import paths
from zoo.errors import ZooError
from zoo.paths import beside, clear_leftovers, home, shipped, swap, write_bytes, write_text

OLD, NEW = b"old" * 5000, b"new" * 9000


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    return path


def untouched(file: Path) -> bool:
    """The old content is there, and nothing beside it."""
    return file.read_bytes() == OLD and list(file.parent.iterdir()) == [file]


def refuse(number: int):
    """An os function that fails."""

    def call(*args, **keywords):
        raise OSError(number, os.strerror(number))

    return call


# ---- writing -------------------------------------------------------------------------------------


def test_written(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    assert write_bytes(path, NEW) == path and path.read_bytes() == NEW
    assert write_bytes(str(path), OLD) == path and path.read_bytes() == OLD and list(path.parent.iterdir()) == [path]
    assert write_text(path, "gr\u00fcn\n") == path and path.read_bytes() == b"gr\xc3\xbcn\n"
    assert write_bytes(path, b"") == path and path.read_bytes() == b""
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bytes("file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW


def test_a_link_is_replaced_and_what_it_led_to_is_untouched(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    write_bytes(link, NEW)
    assert link.read_bytes() == NEW and not link.is_symlink() and file.read_bytes() == OLD


@pytest.mark.parametrize("function", ["replace", "fsync", "chmod", "fdopen"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full and 27,000 bytes are needed; what was there before is untouched"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EIO, "Input/output error"),
        (errno.EACCES, "Permission denied"),
        (errno.EROFS, "Read-only file system"),
    ],
)
def test_a_failing_write_leaves_the_old_content_and_nothing_else(file, monkeypatch, function, number, words):
    monkeypatch.setattr(paths.os, function, refuse(number))
    with pytest.raises(ZooError, match=f"^{file} can't be written: {words}") as caught:
        write_bytes(file, NEW)
    monkeypatch.undo()
    assert untouched(file) and isinstance(caught.value.__cause__, OSError)


def test_an_interruption_leaves_the_old_content_and_nothing_else(file, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(paths.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(file, NEW)
    assert untouched(file)


def test_content_comes_to_the_disk_before_its_name_and_the_name_before_the_return(file, monkeypatch):
    """The order in which a power cut can't leave a part: bytes, rename, folder."""
    done, fsync, replace = [], os.fsync, os.replace

    def note_fsync(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "bytes")
        fsync(handle)

    def note_replace(one, other):
        assert Path(one).read_bytes() == NEW and Path(one).parent == file.parent
        done.append("rename")
        replace(one, other)

    monkeypatch.setattr(paths.os, "fsync", note_fsync)
    monkeypatch.setattr(paths.os, "replace", note_replace)
    write_bytes(file, NEW)
    assert done == ["bytes", "rename", "folder"]


@pytest.mark.parametrize("function", ["os.fsync", "os.chmod", "os.replace"])
def test_a_process_that_dies_leaves_the_old_content(file, function):
    code = (
        f"import os; from zoo.paths import write_bytes; {function} = lambda *_: os._exit(9); "
        f"write_bytes({str(file)!r}, {NEW!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert file.read_bytes() == OLD
    write_bytes(file, NEW)  # and what it left behind is in nobody's way
    assert file.read_bytes() == NEW


def test_places_that_hold_no_file(file, tmp_path):
    for path in (file / "below", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(ZooError, match="can't be written: "):
            write_bytes(path, NEW)
    assert untouched(file)


def test_a_folder_that_may_not_be_written(file):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; the read-only disk below stands for it")
    file.parent.chmod(0o500)
    try:
        with pytest.raises(ZooError, match="can't be written: Permission denied"):
            write_bytes(file, NEW)
    finally:
        file.parent.chmod(0o700)
    assert untouched(file)


DISK = """
import sys
from pathlib import Path
from zoo.errors import ZooError
from zoo.paths import write_bytes

file = Path(sys.argv[1]) / "file"
if sys.argv[2] == "fill":
    write_bytes(file, b"old" * 5000)
try:
    write_bytes(file, b"new" * 20000)
except ZooError as error:
    print(error)
assert file.read_bytes() == b"old" * 5000 and list(file.parent.iterdir()) == [file]
"""


def test_a_disk_that_is_full_and_one_that_is_read_only(tmp_path):
    """Real ones, of 64 KiB in memory, in a child's own view of the file system: they are gone when it ends."""
    mount = f"mount -t tmpfs -o size=64k tmpfs {tmp_path}"
    possible = os.geteuid() == 0 and shutil.which("unshare")
    if (
        not possible
        or subprocess.run(["unshare", "--mount", "sh", "-c", mount], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount")
    child = (
        f'{mount} && "$0" -c "$1" {tmp_path} fill && mount -o remount,ro {tmp_path} && "$0" -c "$1" {tmp_path} again'
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", child, sys.executable, DISK], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    full, read_only = done.stdout.splitlines()
    assert (
        full
        == f"{tmp_path}/file can't be written: the disk is full and 60,000 bytes are needed; what was there before is "
        "untouched"
    )
    assert read_only == f"{tmp_path}/file can't be written: Read-only file system"


# ---- folders that are replaced -------------------------------------------------------------------


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_takes_the_place_of_another(exchanges, tmp_path, monkeypatch):
    if not exchanges:
        monkeypatch.setattr(paths, "_exchange", lambda one, other: False)
    folder = tmp_path / "folder"
    for content in ("a", "b", "c"):
        with beside(folder) as fresh:
            write_text(fresh / content, content)
            swap(fresh, folder)
        assert [path.name for path in folder.iterdir()] == [content] and list(tmp_path.iterdir()) == [folder]
    with pytest.raises(ZooError), beside(folder) as fresh:
        write_text(fresh / "d", "d")
        raise ZooError("no")
    assert [path.name for path in folder.iterdir()] == ["c"] and list(tmp_path.iterdir()) == [folder]


def test_what_a_swap_in_two_steps_took_away_is_put_back(tmp_path):
    old, folder = tmp_path / ".folder.replaced.part", tmp_path / "folder"
    (old / "a").mkdir(parents=True)
    with beside(folder):
        assert (folder / "a").is_dir() and not old.exists()
    (old / "b").mkdir(parents=True)  # killed a step later: the new one is there
    with beside(folder):
        assert (folder / "a").is_dir() and not old.exists()
    assert list(tmp_path.iterdir()) == [folder]


# ---- leftovers -----------------------------------------------------------------------------------


def test_leftovers_are_cleared_and_nothing_else(tmp_path):
    left = [".file.abcd_123.part", "..last.ckpt.new.abcd1234.part", ".folder.abcd1234.part"]
    for name in [*left, ".notes.abcdefgh", "file.abcd1234.part", ".file.abc.part", ".file.abcd1234.part.txt"]:
        (tmp_path / name).mkdir() if "folder" in name else (tmp_path / name).touch()
    (tmp_path / left[2] / "inside").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".link.abcd1234.part").symlink_to(tmp_path / "elsewhere")
    names = {path.name for path in tmp_path.iterdir()}
    clear_leftovers(tmp_path, "file")
    assert {path.name for path in tmp_path.iterdir()} == names - {left[0]}
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names - set(left)


def test_what_is_being_written_is_no_leftover(file, tmp_path, monkeypatch):
    fsync = os.fsync
    monkeypatch.setattr(paths.os, "fsync", lambda handle: (clear_leftovers(tmp_path), fsync(handle)))
    write_bytes(file, NEW)
    assert file.read_bytes() == NEW
    with beside(tmp_path / "folder") as fresh:
        clear_leftovers(tmp_path)
        assert fresh.is_dir()


# ---- finding -------------------------------------------------------------------------------------


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZOO_HOME", "/somewhere/else")
    assert home() == Path("/somewhere/else")
    monkeypatch.setenv("ZOO_HOME", "~/zoo")
    assert home() == tmp_path / "zoo"
    for unset in (lambda: monkeypatch.setenv("ZOO_HOME", ""), lambda: monkeypatch.delenv("ZOO_HOME")):
        unset()
        assert home() == tmp_path / ".cache" / "zoo"
    assert list(tmp_path.iterdir()) == [], "asking for the folder of caches made it"


def test_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "zoo")
    (tmp_path / "recipes").mkdir()
    assert shipped("recipes") is None  # a folder of that name beside an installed package is somebody else's
    (tmp_path / "pyproject.toml").touch()
    assert shipped("recipes") == tmp_path / "recipes" and shipped("hub") is None
    (tmp_path / "zoo" / "_shipped" / "recipes").mkdir(parents=True)
    assert shipped("recipes") == tmp_path / "zoo" / "_shipped" / "recipes"


def test_shipped_in_this_checkout():
    root = Path(paths.__file__).parent.parent
    assert shipped("recipes") == root / "recipes" and shipped("hub") == root / "hub" and shipped("nothing") is None


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a pipe"])
def test_what_is_no_file_is_not_replaced(kind, tmp_path):
    place = made = tmp_path / "there"
    made.mkdir() if kind == "folder" else os.mkfifo(made)
    if "link" in kind:
        place = tmp_path / "link"
        place.symlink_to(made)
    before = os.lstat(place)
    with pytest.raises(ZooError, match="can't be written: it is no ordinary file; give another"):
        write_bytes(place, NEW)
    assert os.path.samestat(os.lstat(place), before) and len(list(tmp_path.iterdir())) == 1 + ("link" in kind)

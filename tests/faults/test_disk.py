"""R8 to R11, R21 to R23: disks that are full, refuse, or give back something else; writing that is killed."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from killing import (
    assert_same,
    at,
    flat,
    forked,
    generated,
    go_on,
    killed,
    pretrain,
    recipe,
    refused,
    state,
    undisturbed,
)  # noqa: F401

from zoo import paths
from zoo.checkpoint import read
from zoo.checkpoint import write as checkpoint
from zoo.errors import ZooError
from zoo.machine.logs import Curves
from zoo.machine.resumable import SafeCheckpointIO, newest_good
from zoo.paths import sync_folder
from zoo.tasks.base import PretextTask

long = pytest.mark.faults
SIZE = 300_000  # bytes of the states here, about


def made(step: int) -> dict:
    return {"step": step, "state_dict": {"w": torch.full((SIZE // 4,), float(step))}}


def step_of(path: Path) -> int:
    return SafeCheckpointIO().load_checkpoint(path)["step"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("filler")}


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, of four megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system isn't allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Leaves about so many bytes, in whole pages."""
    free = os.statvfs(disk)
    size = max(0, free.f_bavail * free.f_frsize - leave)
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size) if size else None


# ---- R8: full ------------------------------------------------------------------------------------


def _full_at(disk: Path, leave: int, monkeypatch, told: bool) -> None:
    """A save on a disk with so much room. `told`: the system says beforehand how much there is; on shared disks it may
    not be true.
    """
    writer = SafeCheckpointIO()
    for step in (1, 2):
        writer.save_checkpoint(made(step), disk / "run" / "last.ckpt")
    fill(disk, leave)
    before = content(disk / "run")
    with monkeypatch.context() as patched:
        if not told:
            patched.setattr("zoo.machine.resumable.shutil.disk_usage", lambda path: types.SimpleNamespace(free=10**12))
        try:
            writer.save_checkpoint(made(3), disk / "run" / "last.ckpt")
            assert leave > SIZE and step_of(newest_good(disk / "run")) == 3
            (disk / "filler").unlink()
            return
        except ZooError as error:
            assert "last.ckpt can't be written" in str(error) and "bytes" in str(error) and "untouched" in str(error)
    assert content(disk / "run") == before, "something was left there, or changed"
    assert step_of(newest_good(disk / "run")) == 2
    (disk / "filler").unlink()
    writer.save_checkpoint(made(4), disk / "run" / "last.ckpt")  # there is room again
    assert step_of(newest_good(disk / "run")) == 4


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("leave", [0, 4096, SIZE // 2, SIZE + 2 * 4096])
def test_r8_the_disk_is_full(leave, told, disk, monkeypatch):
    _full_at(disk, leave, monkeypatch, told)


@long
def test_r8_the_disk_is_full_at_any_page_of_a_save(disk, monkeypatch):
    for leave in range(0, SIZE + 16 * 4096, 4096):
        _full_at(disk, leave, monkeypatch, told=False)


def test_r8_a_run_on_a_full_disk(disk, undisturbed):
    """It ends with the sentence, and when there is room again it goes on as if nothing had been."""
    values = recipe(validate_every=0)
    whole = undisturbed(values)
    size = (whole / "last.ckpt").stat().st_size
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    fill(disk, int(2.5 * size))
    with pytest.raises(ZooError, match=r"last\.ckpt can't be written: .* bytes .*what was .* untouched"):
        pretrain(values, disk / "run")
    assert 0 < state(disk / "run")["global_step"] < 7 and not [
        path.name for path in (disk / "run").iterdir() if path.name.startswith(".")
    ]
    (disk / "filler").unlink()
    assert_same(go_on(values, disk / "run"), whole)


# ---- R9: a small TMPDIR --------------------------------------------------------------------------


def test_r9_temporary_files_have_no_room(disk, tmp_path, monkeypatch, undisturbed):
    """Nothing of a run goes through the folder for temporary files."""
    values = recipe(max_steps=3)
    whole = undisturbed(values)
    fill(disk, 0)
    monkeypatch.setenv("TMPDIR", str(disk))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert_same(pretrain(values, tmp_path / "run"), whole)
    assert [path.name for path in disk.iterdir()] == ["filler"]


# ---- R10: refused --------------------------------------------------------------------------------


def test_r10_a_folder_that_is_read_only(disk, undisturbed):
    """To everybody, root included: the file system is."""
    values = recipe(max_steps=4, validate_every=0)
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    assert killed(values, disk / "run", PretextTask, "training_step", 2)
    before = content(disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(ZooError, match="can't be written: Read-only file system"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the logger, which is as badly off
        pretrain(values, disk / "run", resume=True)
    assert content(disk / "run") == before
    with pytest.raises(ZooError, match="another.*can't be written: Read-only file system"):
        pretrain(values, disk / "another")
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert_same(go_on(values, disk / "run"), undisturbed(values))


def test_r10_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ZooError, match="file/run.* can't be written: Not a directory"):
        pretrain(recipe(max_steps=1), tmp_path / "file" / "run")


def test_r10_a_folder_that_vanishes_is_made_again(tmp_path):
    """Somebody tidies up while the run is on: what it saves from there on is whole."""
    SafeCheckpointIO().save_checkpoint(made(1), tmp_path / "run" / "last.ckpt")
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    (tmp_path / "run").rmdir()
    SafeCheckpointIO().save_checkpoint(made(2), tmp_path / "run" / "last.ckpt")
    assert step_of(newest_good(tmp_path / "run")) == 2


@pytest.mark.parametrize("moment", [3, 6])
def test_r10_a_run_whose_folder_vanishes(moment, tmp_path, monkeypatch, undisturbed):
    """Within the run, or in its last step: it ends with an error, and nothing that was trained is lost."""
    values, step, seen = recipe(max_steps=6, validate_every=0), PretextTask.training_step, []

    def tidied(self, *given):
        seen.append(1)
        if len(seen) == moment:
            shutil.rmtree(tmp_path / "run")
        return step(self, *given)

    with (
        monkeypatch.context() as patched,
        pytest.raises(ZooError, match=f"run was gone at step {moment}; .* add --resume"),
    ):
        patched.setattr(PretextTask, "training_step", tidied)
        pretrain(values, tmp_path / "run")
    assert state(tmp_path / "run")["global_step"] == moment
    resumed = go_on(values, tmp_path / "run")
    assert (resumed / "checkpoint/model.safetensors").read_bytes() == (
        undisturbed(values) / "checkpoint/model.safetensors"
    ).read_bytes()


def test_r10_a_file_that_vanishes_is_written_again(tmp_path, monkeypatch, capsys):
    """The recipe alone is gone: the run goes on, and can be resumed."""
    step = PretextTask.training_step
    monkeypatch.setattr(
        PretextTask,
        "training_step",
        lambda self, *given: ((tmp_path / "run" / "recipe.yaml").unlink(missing_ok=True), step(self, *given))[1],
    )
    run = pretrain(recipe(max_steps=3, validate_every=0), tmp_path / "run")
    assert {path.name for path in run.iterdir()} >= {"recipe.yaml", "run.json", "last.ckpt", "checkpoint"}
    assert "recipe.yaml was gone and is written again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "moment", [0, pytest.param(1, marks=long), pytest.param(2, marks=long), pytest.param(3, marks=long), 4]
)
def test_r10_a_run_on_a_disk_with_errors(moment, tmp_path, undisturbed):
    """The kernel itself answers EIO from that sync on. What it takes to have that of a device, its device mapper, few
    test machines have.
    """
    if forked(lambda: refused(errno.EIO, "fsync")):
        pytest.skip("the kernel takes no rules for calls here")
    values, told = recipe(max_steps=4, validate_every=0), tmp_path / "told"
    whole, save = undisturbed(values), SafeCheckpointIO.save_checkpoint

    def run():
        def armed(self, state, *given, **also):
            if state["global_step"] == 3:
                at(os, "fsync", moment, lambda: refused(errno.EIO, "fsync", "fdatasync"))
            return save(self, state, *given, **also)

        SafeCheckpointIO.save_checkpoint = armed
        try:
            pretrain(values, tmp_path / "run")
        except ZooError as error:
            told.write_text(str(error))

    assert forked(run) == 0
    assert "can't be written: Input/output error" in told.read_text()
    assert torch.load(newest_good(tmp_path / "run"), weights_only=True)["global_step"] in (
        (2,) if moment < 4 else (2, 3)
    )
    assert_same(go_on(values, tmp_path / "run"), whole)


def test_r10_a_file_system_that_cannot_sync_folders(tmp_path, monkeypatch):
    """EINVAL, as some say of a folder, is no failure; anything else is."""
    fsync, code = os.fsync, [errno.EINVAL]

    def without_folders(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(code[0], os.strerror(code[0]))
        return fsync(handle)

    monkeypatch.setattr(paths.os, "fsync", without_folders)
    SafeCheckpointIO().save_checkpoint(made(1), tmp_path / "last.ckpt")
    assert step_of(newest_good(tmp_path)) == 1
    code[0] = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


# ---- R11: damaged --------------------------------------------------------------------------------

DAMAGES = {
    "cut short": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
}


@pytest.mark.parametrize("damage", [name if name == "one bit" else pytest.param(name, marks=long) for name in DAMAGES])
def test_r11_a_damaged_state_is_left_aside(damage, tmp_path, undisturbed):
    values = recipe()
    assert killed(values, tmp_path / "run", PretextTask, "training_step", 5)
    last = tmp_path / "run" / "last.ckpt"
    last.write_bytes(DAMAGES[damage](last.read_bytes()))
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged or was not finished and is left aside"):
        run = go_on(values, tmp_path / "run")
    assert_same(run, undisturbed(values))


def test_r11_no_state_is_whole(tmp_path):
    values = recipe()
    assert killed(values, tmp_path / "run", PretextTask, "training_step", 5)
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / "run" / name).write_bytes(b"\0" * 100)
    with (
        pytest.raises(ZooError, match="no saved state of .*run is whole; start the run again with --out"),
        pytest.warns(UserWarning, match="is damaged"),
    ):
        pretrain(values, tmp_path / "run", resume=True)


# ---- R21: killed while saving, again and again ---------------------------------------------------

RENAMES = 6  # of a save: two files are written, two are put aside, two take their places


def _killed_saves(before: Path, run: Path, renames: tuple[int, ...], least: int) -> None:
    """Saves killed before these of their renames, which may be fewer after a kill: a state of step `least` or later is
    left, and the next save is whole and keeps it."""
    shutil.copytree(before, run)
    for rename in renames:
        code = forked(
            lambda: (at(os, "replace", rename), SafeCheckpointIO().save_checkpoint(made(3), run / "last.ckpt"))
        )
        assert code in (0, -signal.SIGKILL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a damaged one is left aside
            assert step_of(newest_good(run)) >= least
    SafeCheckpointIO().save_checkpoint(made(4), run / "last.ckpt")
    assert step_of(newest_good(run)) == 4
    (run / "last.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="last.ckpt is damaged"):
        assert step_of(newest_good(run)) >= least


@pytest.fixture(params=[False, True], ids=["whole", "damaged"])
def saved(request, tmp_path) -> tuple[Path, int]:
    """A run's folder with the states of steps 1 and 2, the newest damaged or not, and the step of the newest whole
    one.
    """
    for step in (1, 2):
        SafeCheckpointIO().save_checkpoint(made(step), tmp_path / "saved" / "last.ckpt")
    last = tmp_path / "saved" / "last.ckpt"
    if request.param:
        last.write_bytes(DAMAGES["one bit"](last.read_bytes()))
    return last.parent, 1 if request.param else 2


@pytest.mark.parametrize("rename", range(2, RENAMES))
def test_r21_a_save_killed_twice_at_the_same_rename(rename, saved, tmp_path):
    _killed_saves(saved[0], tmp_path / "run", (rename, rename), saved[1])


@long
def test_r21_a_save_killed_at_any_renames(saved, tmp_path):
    for renames in itertools.product(range(RENAMES), repeat=3):
        _killed_saves(saved[0], tmp_path / "run", renames, saved[1])
        shutil.rmtree(tmp_path / "run")


def test_r21_a_state_that_cannot_be_read_keeps_nobody_from_saving(tmp_path):
    """A bad sector under last.ckpt: the one before is taken, and stays when the next is saved."""
    for step in (1, 2):
        SafeCheckpointIO().save_checkpoint(made(step), tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").symlink_to("last.ckpt")  # ELOOP, which root too is given
    SafeCheckpointIO().save_checkpoint(made(3), tmp_path / "last.ckpt")
    assert step_of(newest_good(tmp_path)) == 3 and step_of(tmp_path / "previous.ckpt") == 1


# ---- R22: killed while a checkpoint is changed ---------------------------------------------------


@pytest.mark.parametrize("exchanges", [True, pytest.param(False, marks=long)])
def test_r22_killed_while_a_licence_is_written(exchanges, tmp_path, monkeypatch):
    """config.json and the card that has its sha256 are changed together."""
    if not exchanges:
        monkeypatch.setattr(paths, "_exchange", lambda one, other: False)
    made = pretrain(recipe(max_steps=1, validate_every=0), tmp_path / "run") / "checkpoint"
    (made / "notes.txt").write_text("mine")
    moments = [(os, "replace", moment) for moment in range(3 if exchanges else 6)] + [
        (paths, "_exchange", 0),
        (paths, "sync_folder", 3),
    ]
    for owner, name, moment in moments:
        code = forked(lambda: (at(owner, name, moment), checkpoint.update_card(made, license=f"MIT-{moment}")))
        assert code == -signal.SIGKILL
        paths.restore(made)  # nothing to do where it is one step
        read.load_backbone(made)
    checkpoint.update_card(made, license="CC0-1.0")
    assert checkpoint.read_card(made)["license"] == "CC0-1.0" and (made / "notes.txt").read_text() == "mine"
    assert not [path.name for path in made.parent.iterdir() if path.name.startswith(".")]


# ---- R23: what killed ones leave -----------------------------------------------------------------


def test_r23_what_killed_runs_left_is_gone_when_one_goes_on(tmp_path, undisturbed):
    """Killed while a state is written, and while the checkpoint is."""
    values, run = recipe(max_steps=4, validate_every=0), tmp_path / "run"
    assert (
        forked(
            lambda: (at(SafeCheckpointIO, "save_checkpoint", 2, lambda: at(os, "replace", 0)), pretrain(values, run))
        )
        == -signal.SIGKILL
    )
    assert killed(values, run, checkpoint, "swap", 0, resume=True)
    assert [path.name.rpartition(".")[0][:-9] for path in run.iterdir() if path.name.startswith(".")] == [
        ".checkpoint"
    ], "the state's are gone"
    assert_same(go_on(values, run), undisturbed(values))
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


# ---- R19: the disk of the curves, really full ----------------------------------------------------


@pytest.mark.parametrize("when", [0, 1])
def test_r19_a_disk_with_no_room_for_the_curves(when, disk, tmp_path, monkeypatch, undisturbed):
    """From the first row on; or where a column is added, for which the file is written anew. The run goes on, and what
    stood there stays.
    """
    values, calls, init, log = recipe(), iter(range(10**6)), Curves.__init__, Curves.log_metrics
    whole = undisturbed(values)

    def filling(self, *given):
        if next(calls) == when:
            fill(disk, 0)
        return log(self, *given)

    monkeypatch.setattr(Curves, "__init__", lambda self, folder: init(self, disk))
    monkeypatch.setattr(Curves, "log_metrics", filling)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = pretrain(values, tmp_path / "run")
    (said,) = [str(w.message) for w in caught if "logger failed" in str(w.message)]
    assert said.startswith("the csv logger failed and is left out from here on") and "the disk is full" in said
    assert (run / "checkpoint/model.safetensors").read_bytes() == (whole / "checkpoint/model.safetensors").read_bytes()
    assert {path.name for path in disk.iterdir()} == {"filler"} | ({"metrics.csv"} if when else set())
    if when:
        assert all(
            line.count(",") == (disk / "metrics.csv").read_text().splitlines()[0].count(",")
            for line in (disk / "metrics.csv").read_text().splitlines()
        )

from __future__ import annotations

import errno
import os
import pickle
import shutil

import lightning as L
import pytest
import torch

from zoo import paths
from zoo.errors import ZooError
from zoo.machine import resumable
from zoo.machine.resumable import SafeCheckpointIO, newest_good


def state(step: int) -> dict:
    return {"step": step, "state_dict": {"w": torch.full((50_000,), float(step))}, "loops": [1, None, "a"]}


@pytest.fixture
def run(tmp_path):
    """A run's folder with the states of steps 1 and 2."""
    writer = SafeCheckpointIO()
    for step in (1, 2):
        writer.save_checkpoint(state(step), tmp_path / "last.ckpt")
    return tmp_path


def step_of(path) -> int:
    return SafeCheckpointIO().load_checkpoint(path)["step"]


def test_the_last_and_the_one_before_are_kept(run):
    assert step_of(run / "last.ckpt") == 2 and step_of(run / "previous.ckpt") == 1
    assert sorted(path.name for path in run.iterdir()) == [
        "last.ckpt",
        "last.ckpt.sha256",
        "previous.ckpt",
        "previous.ckpt.sha256",
    ]
    assert newest_good(run) == run / "last.ckpt"
    assert newest_good(run / "nowhere") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[:-1],
        lambda d: d[: len(d) // 2] + bytes([d[len(d) // 2] ^ 1]) + d[len(d) // 2 + 1 :],
        lambda d: bytes(len(d)),
        lambda d: b"",
        lambda d: d + b"x",
    ],
)
def test_a_damaged_state_is_passed_over_with_a_warning(run, damage):
    (run / "last.ckpt").write_bytes(damage((run / "last.ckpt").read_bytes()))
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged"):
        assert newest_good(run) == run / "previous.ckpt"
    (run / "previous.ckpt").write_bytes(damage((run / "previous.ckpt").read_bytes()))
    with (
        pytest.raises(ZooError, match="no saved state of"),
        pytest.warns(UserWarning, match=r"previous\.ckpt is damaged"),
    ):
        newest_good(run)


def test_no_checksum_no_trust(run):
    (run / "last.ckpt.sha256").unlink()
    with pytest.warns(UserWarning, match="last.ckpt"):
        assert newest_good(run) == run / "previous.ckpt"


class Killed(BaseException):
    pass


def test_killed_between_any_two_system_calls_the_newest_good_is_the_old_or_the_new(run, tmp_path_factory, monkeypatch):
    real = {name: getattr(os, name) for name in ("replace", "fsync")}
    for moment in range(30):
        folder = tmp_path_factory.mktemp("copy") / "run"
        shutil.copytree(run, folder)
        calls = []

        def stop(name):
            def call(*args, **keywords):
                if len(calls) == moment:
                    raise Killed
                calls.append(name)
                return real[name](*args, **keywords)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, stop(name))
            patch.setattr(os, "unlink", lambda *a, **k: None)  # a killed process cleans nothing up
            patch.setattr(type(folder), "unlink", lambda *a, **k: None)
            try:
                SafeCheckpointIO().save_checkpoint(state(3), folder / "last.ckpt")
                finished = True
            except Killed:
                finished = False
        if finished:
            break
        assert step_of(newest_good(folder)) in (2, 3), f"killed before call {moment}"
        SafeCheckpointIO().save_checkpoint(state(4), folder / "last.ckpt")  # and the run that goes on can save
        assert step_of(newest_good(folder)) == 4
    assert finished and moment > 8


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("moment", range(4))
def test_a_failing_disk_leaves_what_was_there(run, code, moment, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    real, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) > moment:
            raise OSError(code, os.strerror(code))
        return real(handle)

    monkeypatch.setattr(paths.os, "fsync", fsync)
    with pytest.raises(ZooError, match="last.ckpt.*can't be written") as caught:
        SafeCheckpointIO().save_checkpoint(state(3), run / "last.ckpt")
    monkeypatch.undo()
    assert (code != errno.ENOSPC) or "bytes are needed" in str(caught.value)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_too_little_room_is_known_before_anything_is_written(run, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    monkeypatch.setattr(resumable.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ZooError, match=r"last\.ckpt can't be written: it needs 20\d,\d+ bytes and 1 are free"):
        SafeCheckpointIO().save_checkpoint(state(3), run / "last.ckpt")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_small_folder_for_temporary_files_is_of_no_matter(run, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/dev/null")
    SafeCheckpointIO().save_checkpoint(state(3), run / "last.ckpt")
    assert step_of(newest_good(run)) == 3


def test_a_disk_that_gives_back_something_else_is_noticed(run, monkeypatch):
    monkeypatch.setattr(resumable, "sha256", lambda path: "0" * 64)
    with pytest.raises(ZooError, match="doesn't give back"):
        SafeCheckpointIO().save_checkpoint(state(3), run / "last.ckpt")
    monkeypatch.undo()
    assert step_of(newest_good(run)) == 2


class Canary:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_state_that_runs_code_is_refused(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"x": Canary(canary)}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Canary(canary)))
    for name in ("a.ckpt", "b.ckpt"):
        for weights_only in (None, True, False):
            with pytest.raises(ZooError, match="can't be read as the state of a run"):
                SafeCheckpointIO().load_checkpoint(tmp_path / name, weights_only=weights_only)
    with pytest.raises(ZooError, match="could not be read back"):
        SafeCheckpointIO().save_checkpoint({"x": Canary(canary)}, tmp_path / "last.ckpt")
    for missing in ("nowhere.ckpt", "http://127.0.0.1:9/x.ckpt"):
        with pytest.raises(ZooError):
            SafeCheckpointIO().load_checkpoint(missing)
    assert not canary.exists() and not (tmp_path / "last.ckpt").exists()


class Line(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        return self.w(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(8.0).view(4, 2)))


def test_lightning_saves_and_resumes_through_it(tmp_path):
    def trainer(steps):
        return L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[SafeCheckpointIO()],
            default_root_dir=tmp_path,
        )

    first = trainer(2)
    first.fit(Line())
    first.save_checkpoint(tmp_path / "last.ckpt")
    second = trainer(4)
    second.fit(Line(), ckpt_path=newest_good(tmp_path), weights_only=True)
    assert second.global_step == 4

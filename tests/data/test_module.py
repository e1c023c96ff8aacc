"""What a batch holds, in which order batches come, and that a resumed run sees exactly what was left."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from zoo.data.dataset import Dataset
from zoo.data.datasets import DataInfo
from zoo.data.module import ZooData, create_data
from zoo.data.order import Batches, batches_done
from zoo.draws import mix
from zoo.errors import ZooError


def dataset(train: int = 23, validation: int = 7, test: int = 5) -> Dataset:
    """Images whose every pixel is the row's number; text and labels say it too. Splits are interleaved."""
    count = train + validation + test
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    parts = order.split([train, validation, test])
    splits = {name: part.sort().values for name, part in zip(("train", "validation", "test"), parts, strict=True)}
    rows = torch.arange(count)
    fields = {
        "image": rows.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous(),
        "label": rows % 5,
        "text": [f"image {row}" for row in range(count)],
    }
    info = DataInfo(
        name="numbers",
        fields=tuple(fields),
        channels=3,
        size=4,
        classes=tuple("abcde"),
        version="1",
        license="CC0",
        attribution="",
        homepage="",
        splits={name: len(part) for name, part in splits.items()},
        summary="",
    )
    return Dataset(info=info, fields=fields, splits=splits, fingerprint="0" * 64)


class Recorder(L.LightningModule):
    """Learns from what it sees, and writes down what that was."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(48, 3)
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.global_step, batches_done(self.trainer), batch_idx, batch["index"].tolist()))
        return self.layer(batch["image"].flatten(1) / 255).square().mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch["index"].tolist())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def trainer(folder, **options) -> L.Trainer:
    plain = dict(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    return L.Trainer(**{**plain, **options})


def fake_trainer(rank: int = 0, world: int = 1, epoch: int = 0, start: int = 0, length: int = 10):
    progress = SimpleNamespace(
        current=SimpleNamespace(ready=start), total=SimpleNamespace(completed=epoch * length + start)
    )
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(
        global_rank=rank, world_size=world, overfit_batches=0, fit_loop=loop, num_training_batches=length
    )


# ---- a batch -----------------------------------------------------------------------------------------------
def test_a_batch_holds_the_same_rows_of_every_field():
    data = ZooData(dataset(), batch_size=4)
    for batch in data.batches("train"):
        rows = batch["index"].tolist()
        assert batch["image"][:, 0, 0, 0].tolist() == rows and batch["image"].dtype == torch.uint8
        assert batch["label"].tolist() == [row % 5 for row in rows] and batch["text"] == [
            f"image {row}" for row in rows
        ]


def test_plain_batches_go_once_through_a_split_in_order():
    data = ZooData(dataset(), batch_size=4)
    batches = list(data.batches("train"))
    assert [len(batch["index"]) for batch in batches] == [4, 4, 4, 4, 4, 3]
    assert torch.equal(torch.cat([batch["index"] for batch in batches]), data.dataset.splits["train"])
    assert [set(batch) for batch in data.batches("test", 100, ["label"])] == [{"label", "index"}]
    assert list(ZooData(dataset(test=0)).batches("test")) == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda data: data.batches("validate"), "numbers has no split 'validate'; did you mean validation"),
        (
            lambda data: data.batches("train", fields=["images"]),
            "numbers has no field 'images'; did you mean image",
        ),
        (lambda data: data.batches("train", batch_size=0), "data.batch_size is 0; it is a whole number"),
        (lambda data: ZooData(data.dataset, batch_size=2.5), "data.batch_size is 2.5"),
        (lambda data: create_data("digits", batch_size=-1), "data.batch_size is -1"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(call, words):
    with pytest.raises(ZooError, match=words):
        call(ZooData(dataset()))


# ---- the order ---------------------------------------------------------------------------------------------
def rows_of(batches: Batches) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return rows_of(Batches({}, torch.arange(100), 10, fake_trainer(epoch=epoch), seed, training=True))

    state = torch.get_rng_state()
    assert order(1, 0) == order(1, 0)
    different = {str(order(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(different) == 16
    assert all(sorted(sum(order(seed, 0), [])) == list(range(100)) for seed in range(4))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_order_does_not_change_between_versions():
    assert mix(0, 0) == 5104172916443561106
    assert rows_of(Batches({}, torch.arange(8), 8, fake_trainer(), 0, training=True)) == [[1, 5, 3, 0, 7, 2, 4, 6]]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(1, 7), st.integers(1, 4), st.booleans())
def test_ranks_share_each_global_batch(count, size, world, training):
    def batches(rank, world, size):
        return Batches({}, torch.arange(count), size, fake_trainer(rank, world, epoch=3), 5, training)

    ranks = [rows_of(batches(rank, world, size)) for rank in range(world)]
    whole = rows_of(batches(0, 1, size * world))
    assert {len(rows) for rows in ranks} == {len(batches(0, world, size))}
    assert len({tuple(map(len, rows)) for rows in ranks}) == 1  # all ranks take equally many, so nobody waits
    for number, parts in enumerate(zip(*ranks, strict=True)):
        together = [row for several in zip(*parts, strict=True) for row in several]
        assert together == whole[number][: len(together)] and len(whole[number]) - len(together) < world
    left_out = count - sum(len(part) for rows in ranks for part in rows)
    assert left_out < (size * world if training else world)


def test_a_start_within_the_epoch_goes_on_with_the_same_order():
    def batches(start):
        return rows_of(Batches({}, torch.arange(50), 7, fake_trainer(epoch=2, start=start), 9, training=True))

    assert all(batches(start) == batches(0)[start:] for start in range(8))


# ---- with a trainer ----------------------------------------------------------------------------------------
def test_a_plain_fit_is_free_of_warnings(tmp_path):
    task, data = Recorder(), ZooData(dataset(), batch_size=4, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning's and torch's own affair
        trainer(tmp_path, max_steps=12).fit(task, data)
    assert [entry[:3] for entry in task.seen] == [(step, step, step % 5) for step in range(12)]
    train, epochs = set(data.dataset.splits["train"].tolist()), [task.seen[:5], task.seen[5:10]]
    for epoch in epochs:
        rows = sum((entry[3] for entry in epoch), [])
        assert len(rows) == len(set(rows)) == 20 and set(rows) <= train
    assert sum(task.validated[:2], []) == data.dataset.splits["validation"].tolist()


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("validate", [True, False])
def test_resuming_is_exact_at_every_step(tmp_path, accumulate, validate):
    """Killed after any step, also an epoch's last: the same rows in the same steps, and the same weights."""
    options = dict(max_epochs=3, accumulate_grad_batches=accumulate, limit_val_batches=1.0 if validate else 0)
    keep = ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
    )
    whole = Recorder()
    trainer(tmp_path, enable_checkpointing=True, callbacks=[keep], **options).fit(whole, ZooData(dataset(), 4, seed=1))
    steps = -(-5 // accumulate) * 3
    assert len(whole.seen) == 15 and len(list(tmp_path.glob("*.ckpt"))) == steps
    for step in range(1, steps):
        rest = Recorder()
        state = tmp_path / f"step={step}.ckpt"
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(resumable|resuming|fault).*")
            trainer(tmp_path, **options).fit(rest, ZooData(dataset(), 4, seed=1), ckpt_path=state, weights_only=True)
        assert rest.seen == [entry for entry in whole.seen if entry[0] >= step], f"after step {step}"
        assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True)), (
            f"after step {step}"
        )


@pytest.mark.parametrize("when", ["every step", "end of epoch", "after the run"])
@pytest.mark.parametrize(("first", "whole"), [(10, 20), (8, 18), (10, 12), (2, 4)])
def test_resuming_a_run_counted_in_steps(tmp_path, when, first, whole):
    """Stopped by max_steps, within an epoch or at its end, and gone on; whichever way the state was saved."""
    every = {"every step": {"every_n_train_steps": 1}, "end of epoch": {"every_n_epochs": 1}}.get(when)
    keep = [ModelCheckpoint(tmp_path, save_last=True, **every)] if every else None
    tasks = [Recorder() for _ in range(3)]
    trainer(tmp_path, max_steps=whole).fit(tasks[0], ZooData(dataset(), 4))
    stopped = trainer(tmp_path, max_steps=first, enable_checkpointing=bool(keep), callbacks=keep)
    stopped.fit(tasks[1], ZooData(dataset(), 4))
    if when == "after the run":
        stopped.save_checkpoint(tmp_path / "last.ckpt")
    trainer(tmp_path, max_steps=whole).fit(
        tasks[2], ZooData(dataset(), 4), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert tasks[1].seen + tasks[2].seen == tasks[0].seen
    assert all(torch.equal(a, b) for a, b in zip(tasks[2].parameters(), tasks[0].parameters(), strict=True))


def test_limited_epochs_resume_too(tmp_path):
    tasks = [Recorder() for _ in range(3)]
    options = dict(limit_train_batches=3, limit_val_batches=0)
    trainer(tmp_path, max_steps=11, **options).fit(tasks[0], ZooData(dataset(), 4))
    stopped = trainer(tmp_path, max_steps=7, **options)
    stopped.fit(tasks[1], ZooData(dataset(), 4))
    stopped.save_checkpoint(tmp_path / "a.ckpt")
    trainer(tmp_path, max_steps=11, **options).fit(
        tasks[2], ZooData(dataset(), 4), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert tasks[1].seen + tasks[2].seen == tasks[0].seen
    assert tasks[0].seen[0][3] != tasks[0].seen[3][3]  # the second epoch has its own order


def test_a_state_saved_while_a_step_fails_resumes_with_that_step(tmp_path):
    class Failing(Recorder):
        def training_step(self, batch, batch_idx):
            if self.global_step == 8:
                self.trainer.save_checkpoint(tmp_path / "a.ckpt")
                raise RuntimeError("out of memory")
            return super().training_step(batch, batch_idx)

    whole, first, second = Recorder(), Failing(), Recorder()
    trainer(tmp_path, max_steps=18).fit(whole, ZooData(dataset(), 4))
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(tmp_path, max_steps=18).fit(first, ZooData(dataset(), 4))
    trainer(tmp_path, max_steps=18).fit(second, ZooData(dataset(), 4), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert first.seen + second.seen == whole.seen


def test_nothing_of_the_data_is_in_a_checkpoint(tmp_path):
    runner, data = trainer(tmp_path, max_steps=3), ZooData(dataset(), 4)
    runner.fit(Recorder(), data)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert "ZooData" not in state and "datamodule_hyper_parameters" not in state
    assert state["loops"]["fit_loop"]["state_dict"].get("combined_loader") in (None, [{}])


def test_overfit_batches_sees_the_same_batch_each_epoch(tmp_path):
    task = Recorder()
    trainer(tmp_path, max_epochs=3, overfit_batches=1, limit_val_batches=0).fit(task, ZooData(dataset(), 4))
    assert len({tuple(entry[3]) for entry in task.seen}) == 1 and len(task.seen) == 3


def test_a_train_split_smaller_than_a_batch_is_refused(tmp_path):
    with pytest.raises(
        ZooError,
        match="train split of numbers has 23 images and one step needs 24; give data.batch_size 23 or less",
    ):
        trainer(tmp_path, max_steps=1).fit(Recorder(), ZooData(dataset(), 24))
    trainer(tmp_path, max_steps=1).fit(Recorder(), ZooData(dataset(), 23))


def test_an_empty_validation_split_is_no_obstacle(tmp_path):
    task = Recorder()
    with pytest.warns(UserWarning, match="across ranks is zero"):
        trainer(tmp_path, max_steps=6).fit(task, ZooData(dataset(validation=0), 4))
    assert len(task.seen) == 6 and task.validated == []


def test_two_processes_see_what_one_sees_with_twice_the_batch(tmp_path):
    code = """
import sys, json, torch
sys.path.insert(0, sys.argv[1])
from test_module import Recorder, dataset, trainer
from zoo.data.module import ZooData
class Writer(Recorder):
    def on_train_end(self):
        with open(f"{sys.argv[2]}/{self.global_rank}.json", "w") as file:
            json.dump(self.seen, file)
        if self.global_rank == 0:
            torch.save([weight.detach() for weight in self.parameters()], f"{sys.argv[2]}/weights.pt")
trainer(sys.argv[2], max_steps=7, devices=2, strategy="ddp_fork").fit(Writer(), ZooData(dataset(), 2, seed=4))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one = Recorder()
    trainer(tmp_path, max_steps=7).fit(one, ZooData(dataset(), 4, seed=4))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    both = [[row for pair in zip(a[3], b[3], strict=True) for row in pair] for a, b in zip(first, second, strict=True)]
    assert both == [entry[3] for entry in one.seen]
    for a, b in zip(torch.load(tmp_path / "weights.pt"), one.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), atol=1e-6, rtol=1e-5)


# ---- on a GPU ----------------------------------------------------------------------------------------------
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_images_live_on_a_gpu_with_room(tmp_path):
    data, task = ZooData(dataset(), 4), Recorder()
    trainer(tmp_path, max_steps=7, accelerator="gpu").fit(task, data)
    on_cpu = Recorder()
    trainer(tmp_path, max_steps=7).fit(on_cpu, ZooData(dataset(), 4))
    assert task.seen == on_cpu.seen and data.dataset.fields["image"].device.type == "cpu" and data._resident is None


@pytest.mark.parametrize(("free", "resident"), [(10**9, True), (5000, False)])
def test_images_move_to_the_device_if_they_fit_in_a_third_of_it(monkeypatch, free, resident):
    """The decision alone, with a stand-in for the GPU."""
    data = ZooData(dataset(), 4)
    root = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**10))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: "moved" if device is root else tensor)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=root))
    fields = data._fields()
    assert (fields["image"] is data.dataset.fields["image"]) != resident and fields["text"] is data.dataset.fields[
        "text"
    ]
    data.teardown("fit")
    assert data._resident is None

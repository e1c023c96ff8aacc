"""Two processes that share a network by FSDP compute what one process computes, hold half each, and leave behind what
other runs leave behind.

Everything that needs two processes happens in one pair, forked from the test's process, which has imported everything
already.
"""

from __future__ import annotations

import os
import signal
import traceback
from pathlib import Path
from typing import Any

import killing
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from killing import generated  # noqa: F401
from launching import LIMIT, free_port
from test_ranks import CLOSE, WORLD, each_tensor, group, make, share, views_of
from torch import Tensor, nn

import zoo
from zoo.contract.small import CONV, CPU, VIT
from zoo.errors import ZooError
from zoo.losses import total
from zoo.machine.norms import use_global_batch_norm
from zoo.machine.resumable import Clock
from zoo.optim import Optim
from zoo.tasks.base import PretextTask
from zoo.train import fsdp
from zoo.train.fit import build, check_fit, for_smoke
from zoo.train.settings import Training

CASES = {
    "mae": "adamw",
    "simclr": "sgd",
    "byol": "sgd",
    "data2vec": "lars",
}  # a decoder; BatchNorm; a teacher with it; one of tokens
STEPS = 3
QKV = "backbone.model.blocks.0.attn.qkv.weight"


# ---- step by step, in float64 --------------------------------------------------------------------


def whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()


def here(tensors: Any) -> int:
    """How many numbers of them this process holds."""
    return sum(x.to_local().numel() if hasattr(x, "to_local") else x.numel() for x in tensors)


def steps_of(task: PretextTask, views: list[tuple]) -> tuple[list[dict], dict[str, int]]:
    """Facts of each step: loss, gradients, their norm before it was clipped, buffers, weights; and how much of what is
    held when all is done.
    """
    optimizer = Optim(CASES[task.name], lr=0.01).build(task)
    facts = []
    for step, given in enumerate(views):
        loss = task(given).loss
        buffers = {f"buffer {name}": value.clone() for name, value in task.named_buffers()}
        optimizer.zero_grad()
        loss.backward()
        gradients = {f"gradient of {name}": whole(p.grad) for name, p in task.named_parameters() if p.grad is not None}
        norm = whole(torch.nn.utils.clip_grad_norm_(task.parameters(), 0.5))
        optimizer.step()
        with torch.no_grad():
            task.after_step((step + 1) / (2 * STEPS))
        after = {f"after the step, {name}": whole(value) for name, value in task.state_dict().items()}
        facts.append(
            {
                "loss": total(loss.detach()) / (dist.get_world_size() if dist.is_initialized() else 1),
                "norm": norm,
                **buffers,
                **gradients,
                **after,
            }
        )
    state = [
        value
        for values in optimizer.state.values()
        for value in values.values()
        if isinstance(value, Tensor) and value.ndim
    ]
    return facts, {
        "parameters": here(task.parameters()),
        "gradients": here(p.grad for p in task.parameters() if p.grad is not None),
        "optimizer state": here(state),
    }


# ---- whole runs ----------------------------------------------------------------------------------


def recipe(strategy: str, optim: str = "sgd", **more: Any) -> dict:
    """A teacher, a queue and BatchNorm; gradients of two batches are added up and clipped; validation looks at
    features.
    """
    values = killing.recipe(
        "moco", max_steps=4, accumulate=2, clip=0.5, devices=WORLD, strategy=strategy, timeout=30.0, **more
    )
    return values | {
        "backbone": VIT,
        "data": values["data"] | {"batch_size": 2},
        "optim": {"name": optim, "lr": {"sgd": 0.1, "adamw": 2e-3}[optim]},
    }


def other_queue(clock: Clock, trainer: Any, task: PretextTask) -> None:
    """Of what the processes should have in common, the first one's holds."""
    if trainer.global_rank:
        task.queue.rows.copy_(task.queue.rows[:1].clone())


def not_finite(clock: Clock, trainer: Any, task: PretextTask) -> None:
    """In the share of the second process alone."""
    if trainer.global_rank and trainer.global_step == 1:
        dict(task.named_parameters())[QKV].grad.to_local()[-1, -1] = float("nan")


def told_to_end(clock: Clock, trainer: Any, *ignored: Any) -> None:
    if trainer.global_rank and trainer.global_step == 2:
        os.kill(os.getpid(), signal.SIGTERM)


def runs(port: Any) -> dict[str, Any]:
    """What became of runs that a launcher like torchrun started: folder or exit code or error."""

    def run(out: str, values: dict, resume: bool = False, **hooks: Any) -> Any:
        os.environ["MASTER_PORT"] = str(next(port))
        for name, hook in hooks.items():
            setattr(Clock, name, hook)
        try:
            return str(killing.pretrain(values, Path(out), resume))
        except SystemExit as end:
            return end.code
        except ZooError as error:
            return error
        finally:
            for name in hooks:
                delattr(Clock, name)

    torch.cpu.get_capabilities = lambda: {
        "bf16": True
    }  # where this machine emulates it, which is slower and no less right
    adamw = recipe("fsdp", "adamw", save_every=1)
    return {
        "ddp": run("ddp", recipe("ddp"), on_train_start=other_queue),
        "fsdp": run("fsdp", recipe("fsdp"), on_train_start=other_queue),
        "undisturbed": run("undisturbed", adamw),
        "cut": run("cut", adamw, on_train_batch_end=told_to_end),
        "resumed": run("cut", adamw, True),
        "bf16": run("bf16", recipe("fsdp", precision="bf16")),
        "not finite": run("nan", recipe("fsdp"), on_after_backward=not_finite),
    }


# ---- the pair ------------------------------------------------------------------------------------


def _rank(rank: int, folder: Path, ports: list[int]) -> None:
    torch.set_num_threads(1)
    for name in CASES:
        group(rank, folder / f"{name}.meet")
        try:
            task = use_global_batch_norm(make(name, VIT))
            fsdp.shard(task, CPU)
            found = steps_of(
                task,
                [
                    each_tensor(given, lambda x: share(x, rank))
                    for given in torch.load(folder / f"{name}.views", weights_only=False)
                ],
            )
        except Exception:
            found = traceback.format_exc()
        dist.destroy_process_group()
        torch.save(found, folder / f"{name}.{rank}")
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE=str(WORLD),
        LOCAL_WORLD_SIZE=str(WORLD),
        TORCHELASTIC_RUN_ID="test",
        MASTER_ADDR="127.0.0.1",
    )
    os.chdir(folder)
    try:
        found = runs(iter(ports))
    except Exception:
        torch.save(traceback.format_exc(), folder / f"runs.{rank}")
        raise  # which ends the other one, too
    torch.save(found, folder / f"runs.{rank}")


_folder: list[Path] = []


@pytest.fixture
def pair(generated, tmp_path_factory) -> Path:
    """The folder with what two processes found; once, for all tests."""
    if not _folder:
        folder = tmp_path_factory.mktemp("sharded")
        for name in CASES:
            torch.save(
                [views_of(make(name, VIT).float(), step, STEPS) for step in range(STEPS)], folder / f"{name}.views"
            )
        both = mp.start_processes(
            _rank, (folder, [free_port() for _ in range(8)]), nprocs=WORLD, join=False, daemon=True, start_method="fork"
        )
        try:
            assert both.join(LIMIT) or both.join(LIMIT), (
                "the two processes hang"
            )  # the first call waits for one of them
        finally:
            for process in both.processes:
                process.kill()
        _folder.append(folder)
    return _folder[0]


def found_by(pair: Path, what: str) -> list[Any]:
    found = [torch.load(pair / f"{what}.{rank}", weights_only=False) for rank in range(WORLD)]
    for rank, one in enumerate(found):
        assert not isinstance(one, str), f"{what} fails in process {rank}:\n{one}"
    return found


@pytest.mark.parametrize("name", CASES)
def test_two_processes_that_share_equal_one(name, pair):
    task = make(name, VIT)
    one, all_of_it = steps_of(task, torch.load(pair / f"{name}.views", weights_only=False))
    for rank, (two, held) in enumerate(found_by(pair, name)):
        for step in range(STEPS):
            assert two[step].keys() == one[step].keys()
            for what, value in one[step].items():
                where = f"{name}, step {step}, process {rank}: {what}"
                torch.testing.assert_close(
                    two[step][what], value, **CLOSE, msg=lambda text, where=where: f"{where}\n{text}"
                )
        for what, count in held.items():
            assert 0.45 < count / all_of_it[what] < 0.55, (
                f"process {rank} holds {count:,} of {all_of_it[what]:,} numbers of the {what}"
            )
    assert one[0]["loss"] != one[1]["loss"] and one[0]["norm"] > 0.5
    held = [held for _, held in found_by(pair, name)]
    assert {what: sum(each[what] for each in held) for what in all_of_it} == all_of_it


def test_a_run_leaves_behind_what_one_with_ddp_does(pair):
    """The resumable state in the same form and, but for rounding, with the same numbers, the curves, and the
    checkpoint.
    """
    first, second = found_by(pair, "runs")
    assert (first["ddp"], first["fsdp"], second["fsdp"]) == ("ddp", "fsdp", "fsdp")
    ours, theirs = (dict(killing.flat(killing.state(pair / name))) for name in ("fsdp", "ddp"))
    assert ours.keys() == theirs.keys()
    tensors = [key for key, value in theirs.items() if isinstance(value, Tensor)]
    assert any(key.startswith(".optimizer_states") for key in tensors) and any("teacher" in key for key in tensors)
    for key in tensors:
        form, wanted = ((type(x[key]), x[key].dtype, x[key].untyped_storage().nbytes()) for x in (ours, theirs))
        assert form == wanted, key
        torch.testing.assert_close(
            ours[key], theirs[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}\n{text}"
        )
    for one, two in zip(killing.curves(pair / "fsdp"), killing.curves(pair / "ddp"), strict=True):
        assert one.keys() == two.keys() and {"knn", "spread", "effective_rank", "val_loss"} <= one.keys()
        assert {key: float(value or 0) for key, value in one.items()} == pytest.approx(
            {key: float(value or 0) for key, value in two.items()}, rel=1e-3
        )
    files = [
        sorted(
            (path.name, path.stat().st_size)
            for path in (pair / name / "checkpoint").iterdir()
            if path.suffix == ".safetensors"
        )
        for name in ("fsdp", "ddp")
    ]
    assert files[0] == files[1] and len(files[0]) == 2


def test_its_checkpoint_is_loaded_without_any_process_group(pair):
    model, _ = zoo.load(pair / "fsdp")
    saved = killing.state(pair / "fsdp")["state_dict"]
    assert not dist.is_initialized() and type(model).__name__ == "VisionTransformer"
    for name, value in model.state_dict().items():
        assert type(value) is Tensor and torch.equal(value, saved[f"backbone.model.{name}"]), name
    resolved = zoo.recipe.resolve(zoo.recipe.read(pair / "fsdp/recipe.yaml"))
    started = build(resolved, check_fit(resolved)).backbone.model.state_dict()
    assert not torch.equal(model.state_dict()["norm.weight"], started["norm.weight"])


def test_ended_by_a_signal_and_resumed_it_is_the_undisturbed_run(pair):
    for found in found_by(pair, "runs"):
        assert (found["undisturbed"], found["cut"], found["resumed"]) == ("undisturbed", 143, "cut")
    killing.assert_same(pair / "cut", pair / "undisturbed")


def test_a_gradient_that_is_not_finite_in_one_share_ends_all_processes(pair):
    for found in found_by(pair, "runs"):
        assert str(found["not finite"]).startswith(f"the gradient of {QKV} isn't finite at epoch 0, batch 2 (loss ")


def test_in_bf16(pair):
    assert [found["bf16"] for found in found_by(pair, "runs")] == ["bf16"] * WORLD
    ours, theirs = (killing.state(pair / name)["state_dict"][QKV] for name in ("bf16", "fsdp"))
    assert ours.dtype == torch.float32 and not torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_resumed_without_shares_is_refused(pair):
    with pytest.raises(
        ZooError, match="undisturbed was begun with trainer.strategy 'fsdp', and the recipe now says 'ddp'"
    ):
        killing.pretrain(recipe("ddp", "adamw", save_every=1), pair / "undisturbed", resume=True)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trainer": {"devices": 1}}, "by which processes share a network, and there is one; set trainer.devices"),
        ({"trainer": {"channels_last": True}}, "set trainer.channels_last to false"),
        (
            {"backbone": CONV},
            r"test_resnet \(ResNet\) has none; use a ViT or Eva of timm, such as vit_tiny_patch16_224, or set "
            r"trainer.strategy to ddp",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_before_anything_happens(change, said, tmp_path):
    values = recipe("fsdp")
    values |= {group: values[group] | given if group == "trainer" else given for group, given in change.items()}
    with pytest.raises(ZooError, match=said):
        zoo.pretrain(values, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_task_with_a_scalar_is_refused():
    task = make("mae", VIT)
    task.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ZooError, match=r"scale of the task mae is a scalar, .* give it the shape \(1,\)"):
        fsdp.check(task, WORLD, channels_last=False)


def test_smoke_in_one_process_shares_nothing():
    resolved = zoo.recipe.resolve(recipe("fsdp"))
    assert Training(**for_smoke(resolved)["trainer"]).strategy == "ddp" and resolved["trainer"]["strategy"] == "fsdp"

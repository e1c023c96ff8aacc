"""Two processes that share a batch compute what one process computes of the whole, for every task that the zoo has.

A task joins by being registered. Its views of one global batch are made once, by one process, and handed out: of
everything in them that has a row for each picture, process r of W gets the rows r, r + W, ...; in float64, so that
nothing but a mistake makes a difference.
"""

from __future__ import annotations

import copy
import datetime
import functools
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from zoo.contract.small import CPU, SIZES, backbone_for, batch_of
from zoo.contract.small import make as small_task
from zoo.draws import Draw, counted
from zoo.errors import ZooError
from zoo.heads import projector
from zoo.losses import gather, total
from zoo.machine.norms import use_global_batch_norm
from zoo.registry import find_task, list_tasks
from zoo.tasks.base import PretextTask

SIDE = SIZES[0]  # pixels
WORLD, IMAGES, STEPS = 2, 14, 2  # 14 pictures: a number of rows that nothing else in a batch has
OTHERS: dict[str, tuple[str, dict | None, dict]] = {  # name -> task, backbone, arguments: what defaults don't reach
    "colorize on test_convnext": ("colorize", {"name": "test_convnext"}, {}),  # whose last norm lies behind the pooling
    "deepcluster that clusters": ("deepcluster", None, {"clusters": 4, "memory": IMAGES, "every": 1}),
    "moco v3": ("moco", None, {"version": "v3"}),
    "relational distillation": ("distillation", None, {"relational": 1.0}),
}
TASKS = [entry.name for entry in list_tasks() if entry.origin == "zoo"] + list(OTHERS)
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
WAIT = datetime.timedelta(seconds=20)  # for a process whose partner failed


# ---- what is computed ----------------------------------------------------------------------------


@functools.cache
def backbone_of(cls: type[PretextTask]) -> dict:
    """Keywords of a backbone that the task takes, tried once in a process."""
    return backbone_for(cls, {})


def make(name: str, backbone: dict | None = None) -> PretextTask:
    """The task with its initial weights, in double precision and without dropout of any kind."""
    name, other, arguments = OTHERS.get(name, (name, None, {}))
    cls = find_task(name)
    keywords = backbone or other or backbone_of(cls)
    with counted(CPU, 0):
        task = small_task(cls, keywords, SIDE, arguments)
    for module in task.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return task.double().train()


def views_of(task: PretextTask, step: int, steps: int = STEPS) -> tuple:
    """The views of a global batch, by one process; another batch each of the steps."""
    batch = batch_of(type(task), SIDE, IMAGES * steps)
    rows = slice(step * IMAGES, (step + 1) * IMAGES)
    with torch.no_grad(), counted(CPU, Draw.TRAINING, step):
        views = task.views({name: field[rows] for name, field in batch.items()})
    return each_tensor(views, lambda x: x.double() if x.is_floating_point() else x)


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: each_tensor(part, change) for key, part in value.items()}
    return type(value)(each_tensor(part, change) for part in value) if isinstance(value, (list, tuple)) else value


def share(x: Tensor, rank: int) -> Tensor:
    """The rows of process `rank`: along the first dimension that has one for each picture, as in (B, ...) and (V, B,
    ...); several blocks of such rows one after the other, (V B, ...), count as the latter. What has no row for each
    picture belongs to everyone.
    """
    if IMAGES in x.shape:
        where = x.shape.index(IMAGES)
        return x.index_select(where, torch.arange(rank, IMAGES, WORLD))
    if x.ndim and len(x) and len(x) % IMAGES == 0:
        return x.unflatten(0, (-1, IMAGES))[:, rank::WORLD].flatten(0, 1)
    return x


def steps_of(task: PretextTask, run: Callable, views: list[tuple]) -> list[dict]:
    """Facts of each step: loss and gradients, the buffers after forward, and what the step and `after_step` made of the
    weights.
    """
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.05)
    facts = []
    for step, given in enumerate(views):
        loss = run(given).loss
        buffers = {f"buffer {name}": value.clone() for name, value in task.named_buffers()}
        optimizer.zero_grad()
        loss.backward()
        gradients = {f"gradient of {name}": p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
        optimizer.step()
        with torch.no_grad():
            task.after_step((step + 1) / (2 * STEPS))
        after = {f"after the step, {name}": value.clone() for name, value in task.state_dict().items()}
        facts.append(
            {
                "loss": total(loss.detach()) / (dist.get_world_size() if dist.is_initialized() else 1),
                **buffers,
                **gradients,
                **after,
            }
        )
    return facts


# ---- two processes, once for all tasks -----------------------------------------------------------


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    group(rank, Path(folder) / "parts.meet")
    torch.save(parts(rank), Path(folder) / f"parts.{rank}")
    torch.save(lengths(rank), Path(folder) / f"lengths.{rank}")
    dist.destroy_process_group()
    for name in TASKS:
        group(
            rank, Path(folder) / f"{name}.meet"
        )  # one for each task, so that a task that fails leaves the others whole
        try:
            views = [
                each_tensor(given, lambda x: share(x, rank))
                for given in torch.load(Path(folder) / f"{name}.views", weights_only=False)
            ]
            first = use_global_batch_norm(make(name))
            second = copy.deepcopy(first)
            facts, (again,) = (
                steps_of(task, DistributedDataParallel(task), copy.deepcopy(given))
                for task, given in ((first, views), (second, views[:1]))
            )
            other = [what for what in again if not torch.equal(facts[0][what], again[what])]
            assert not other, f"{other} is another when the first step is done again"
        except Exception:
            facts = traceback.format_exc()
        dist.destroy_process_group()
        torch.save(facts, Path(folder) / f"{name}.{rank}")


def group(rank: int, meet: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=WORLD, timeout=WAIT)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """The folder with what two processes found, for each task and rank."""
    folder = tmp_path_factory.mktemp("pair")
    for name in TASKS:
        task = make(name).float()
        torch.save([views_of(task, step) for step in range(STEPS)], folder / f"{name}.views")
    mp.spawn(_rank, (str(folder),), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_equal_one(name, pair):
    ranks = [torch.load(pair / f"{name}.{rank}", weights_only=False) for rank in range(WORLD)]
    for facts in ranks:
        assert not isinstance(facts, str), f"{name} fails with two processes:\n{facts}"
    task = make(name)
    one = steps_of(task, task, torch.load(pair / f"{name}.views", weights_only=False))
    for rank, two in enumerate(ranks):
        for step in range(STEPS):
            assert two[step].keys() == one[step].keys()
            for what, value in one[step].items():
                where = f"{name}, step {step}, process {rank}: {what}"
                torch.testing.assert_close(
                    two[step][what], value, **CLOSE, msg=lambda text, where=where: f"{where}\n{text}"
                )
    assert any(what.startswith("gradient") and value.abs().max() > 0 for what, value in one[0].items())
    assert not torch.equal(one[0]["loss"], one[1]["loss"])


def test_rows_of_a_process():
    rows = torch.arange(IMAGES)
    views = ([rows, (rows.repeat(3), rows.expand(4, -1))], {"one": torch.tensor(3.0)}, torch.zeros(5, 2), None)
    [first, (blocks, stacked)], one, other, nothing = each_tensor(views, lambda x: share(x, 1))
    odd = rows[1::2]
    assert torch.equal(first, odd) and torch.equal(blocks, odd.repeat(3)) and torch.equal(stacked, odd.expand(4, -1))
    assert one == {"one": torch.tensor(3.0)} and other.shape == (5, 2) and nothing is None


# ---- their parts ---------------------------------------------------------------------------------


def parts(rank: int, world: int = WORLD) -> dict:
    """What a rank of the pair saves of them, or, with a world of 1, what one process makes of the whole."""
    rows = torch.arange(12.0).view(6, 2)[rank::world]
    layer = use_global_batch_norm(BatchNormAct2d(3, act_layer=nn.GELU)).double()
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))[
        rank::world
    ].requires_grad_()
    out = layer(x)
    total((out * out.detach().flip(1)).sum()).backward()
    return {
        "gathered": gather(rows),
        "total": total(rows.sum(0)),
        "out": gather(out.detach()),
        "gradient": gather(x.grad) / world,
        "mean": layer.running_mean,
        "variance": layer.running_var,
    }


def test_order_of_the_global_batch_and_fused_batch_norm(pair):
    one = parts(0, 1)
    for rank in range(WORLD):
        two = torch.load(pair / f"parts.{rank}", weights_only=True)
        assert two.keys() == one.keys()
        for what in one:
            torch.testing.assert_close(
                two[what], one[what], msg=lambda text, where=f"process {rank}, {what}": f"{where}\n{text}"
            )
    assert torch.equal(one["gathered"], torch.arange(12.0).view(6, 2)) and one["gradient"].abs().max() > 0


def lengths(rank: int) -> list[str]:
    """What a rank of the pair is told about loaders of its own, in training and in validation: nothing where it may go
    on.
    """
    task, said = make("autoencoder"), []
    for batches, unlimited in (
        ((3, 3), 9),
        ((3, 2), 9),
        ((3, 2), 2),
        ((9, 9), (3, 2)),
        ((None, None), math.inf),
        ((2, None), math.inf),
    ):
        most = unlimited[rank] if isinstance(unlimited, tuple) else unlimited
        loader = None if batches[rank] is None else DataLoader(range(batches[rank]))
        task.trainer = SimpleNamespace(
            datamodule=None, train_dataloader=loader, num_training_batches=most, num_val_batches=[most, 1]
        )
        for hook in (task.on_train_epoch_start, task.on_validation_epoch_start):
            try:
                hook()
                said.append("")
            except ZooError as error:
                said.append(str(error).partition(",")[0])
    return said


def test_as_many_batches_in_every_process(pair):
    training, validation = (
        "the processes have 3 and 2 batches of training",
        "the processes have 4 and 3 batches of validation",
    )
    for rank in range(WORLD):
        assert torch.load(pair / f"lengths.{rank}", weights_only=True) == [
            "",
            "",
            training,
            "",
            "",
            "",
            training,
            validation,
            "",
            "",
            "",
            "",
        ]
    task = make("autoencoder")  # and nobody else is asked
    task.trainer = SimpleNamespace(
        datamodule=None, train_dataloader=DataLoader(range(3)), num_training_batches=3, num_val_batches=[1]
    )
    task.on_train_epoch_start()
    task.on_validation_epoch_start()


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(timm.create_model("test_resnet", num_classes=0), projector(96, 32, 16)).double()


def test_one_process_with_global_statistics_is_plain_batch_norm():
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    plain, ours = _model(), use_global_batch_norm(_model())
    torch.testing.assert_close(plain(x), ours(x))
    torch.testing.assert_close(plain.state_dict(), ours.state_dict())
    plain.eval(), ours.eval()
    torch.testing.assert_close(plain(x), ours(x))

"""Images a second and memory of every pretext task, as a share of a bare PyTorch loop of the same task.

    python benchmarks/throughput.py [--only mae simclr] [--steps 12] [--rounds 3] [--alike]

"bare" makes the task's own views and loss, and calls backward, optimizer and teacher, without Lightning, loader,
logging or checks. Both run in turn, each time in a process of its own that was forked after the imports, so that the
ratios hold although the machine's speed drifts, and each has its own peak memory. With --alike the bare loop computes
as ours does on a CPU (zoo/cpu.py), so that the share is what Lightning, loader, logs and checks cost, and nothing else.
Recipes, backbones and batch are those of benchmarks/table.py; pictures are noise.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from simclr import Clock, apart, trainer
from table import BATCH, SIZE, recipes_of

from zoo.data.dataset import Dataset
from zoo.data.datasets import DataInfo
from zoo.data.module import ZooData
from zoo.machine import cpu
from zoo.registry import list_tasks
from zoo.train.fit import build

CLASSES = tuple("0123456789")


def pictures(count: int) -> Dataset:
    info = DataInfo("noise", ("image", "label"), 3, SIZE, CLASSES, "1", "CC0-1.0", "", "", {}, "")
    draw = torch.Generator().manual_seed(0)
    fields = {
        "image": torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=draw),
        "label": torch.arange(count) % 10,
    }
    order = torch.arange(count)
    return Dataset(info, fields, {"train": order, "validation": order[:0], "test": order[:0]}, "noise")


def ours(recipe: dict, warm: int, steps: int) -> float:
    task, clock = build(recipe, SIZE), Clock(warm)
    precision = "bf16-mixed" if recipe["trainer"]["precision"] == "bf16" else "32-true"
    if recipe["trainer"]["channels_last"]:
        task.to(memory_format=torch.channels_last)
    trainer(warm + steps, clock, precision).fit(task, ZooData(pictures(BATCH * (warm + steps)), BATCH))
    return BATCH * steps / (clock.end - clock.start)


def bare(recipe: dict, warm: int, steps: int, alike: bool) -> float:
    task = build(recipe, SIZE).train()
    if alike:
        cpu.quicken(task, getattr(task.backbone, "num_patches", None))
        cpu.keep_memory()
    if recipe["trainer"]["channels_last"]:
        task.to(memory_format=torch.channels_last)
    optimizer, total = task.optim.build(task), warm + steps
    fields = pictures(BATCH * total).fields
    order = torch.randperm(BATCH * total)
    for step in range(total):
        if step == warm:
            start = time.perf_counter()
        rows = order[step * BATCH : (step + 1) * BATCH]
        batch = {name: field[rows] for name, field in fields.items()} | {"index": rows}
        with torch.no_grad():
            views = task.views(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe["trainer"]["precision"] == "bf16"):
            loss = task(views).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            task.after_step((step + 1) / total)
    return BATCH * steps / (time.perf_counter() - start)


def _cells(pairs: list) -> list[str]:
    """The medians over rounds of ((rate, memory) of ours, of the bare loop), and of their ratios."""
    rates, memory = zip(*[((a[0], b[0]), (a[1], b[1])) for a, b in pairs])
    mb = [statistics.median(m[i] for m in memory) for i in (0, 1)]
    return [
        *(f"{statistics.median(r[i] for r in rates):,.0f}" for i in (0, 1)),
        f"{statistics.median(a / b for a, b in rates):.2f}",
        *(f"{m:,.0f}" for m in mb),
        f"{mb[0] / mb[1]:.2f}",
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="*", help="tasks by name")
    arguments.add_argument("--steps", type=int, default=12, help="timed steps a round")
    arguments.add_argument("--warm", type=int, default=2, help="steps before the clock starts")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--alike", action="store_true", help="let the bare loop compute as ours does")
    given = arguments.parse_args()
    table = Table(
        title=f"batch {BATCH}, {SIZE} px, {torch.get_num_threads()} threads, {given.rounds} rounds of {given.steps} "
        "steps"
    )
    for column in ("task", "images/s", "bare loop", "share", "MB", "bare MB", "share"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for entry in list_tasks():
        if entry.origin != "zoo" or (given.only and entry.name not in given.only):
            continue
        for recipe in (found := recipes_of(entry.name, "emoji")):
            pairs = [
                (
                    apart(ours, recipe, given.warm, given.steps),
                    apart(bare, recipe, given.warm, given.steps, given.alike),
                )
                for _ in range(given.rounds)
            ]
            name = entry.name if len(found) == 1 else f"{entry.name}, {recipe['backbone']['name']}"
            table.add_row(name, *_cells(pairs))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

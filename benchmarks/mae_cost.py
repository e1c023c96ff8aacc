"""What a step of MAE costs at several mask ratios, beside the same encoder on every patch.

    python benchmarks/mae_cost.py [--batch 128] [--rounds 7]

The backbone, decoder and optimizer are those of recipes/pretrain/mae-vit-fashion-mnist.yaml. The encoder's row is
forward and backward of `backbone.tokens` on the visible patches; the step's is views, forward, backward and optimizer.
"all" is the encoder without a mask, which MAE can't train with; the smallest mask hides one patch. Floating-point
operations are counted by torch, so they don't depend on the machine. Times are the best of several rounds, all taken in
turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from zoo import recipe as recipes
from zoo.tasks.base import PretextTask
from zoo.train.fit import build

RECIPE, SIZE = "mae-vit-fashion-mnist", 28
RATIOS = (0.0, 0.25, 0.5, 0.75, 0.9)


def task_with(ratio: float) -> PretextTask:
    """The recipe's task with that share of its patches hidden, but at least one."""
    resolved = recipes.resolve(recipes.read(RECIPE))
    patches = (SIZE // resolved["backbone"]["patch_size"]) ** 2
    resolved["task"]["mask_ratio"] = max(ratio, 1 / patches)
    return build(resolved, SIZE).train()


def encoder(task: PretextTask, image: torch.Tensor, keep: torch.Tensor | None) -> Callable[[], None]:
    def forward_and_backward() -> None:
        task.zero_grad()
        task.backbone.tokens(image, keep).sum().backward()

    return forward_and_backward


def step(task: PretextTask, batch: dict) -> Callable[[], None]:
    optimizer = task.optim.build(task)

    def whole_step() -> None:
        with torch.no_grad():
            made = task.views(batch)
        optimizer.zero_grad()
        task(made).loss.backward()
        optimizer.step()

    return whole_step


def gflops(function: Callable[[], None]) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    batch = {"image": torch.randint(0, 256, (given.batch, 1, SIZE, SIZE), dtype=torch.uint8)}
    measured: dict[str, tuple[PretextTask, Callable, Callable | None]] = {}
    for ratio in RATIOS:
        task = task_with(ratio)
        image, keep, _ = task.views(batch)
        if not measured:
            measured["all"] = task, encoder(task, image, None), None
        measured[f"{ratio:g}"] = task, encoder(task, image, keep), step(task, batch)
    best = {(name, part): float("inf") for name in measured for part in (1, 2)}
    for _ in range(given.rounds + 1):  # the first, which warms up, is never the best
        for name, row in measured.items():
            for part in (1, 2):
                if row[part] is not None:
                    start = time.perf_counter()
                    row[part]()
                    best[name, part] = min(best[name, part], time.perf_counter() - start)
    table = Table(
        title=f"{RECIPE}, batch {given.batch}, {torch.get_num_threads()} threads, best of {given.rounds} rounds"
    )
    for column in (
        "mask ratio",
        "visible",
        "encoder ms",
        "of all",
        "encoder GFLOP",
        "of all",
        "step ms",
        "step GFLOP",
        "encoder of step",
    ):
        table.add_column(column, justify="right")
    all_flops = gflops(measured["all"][1])
    for name, (task, encode, whole) in measured.items():
        flops, visible = gflops(encode), task.side**2 if name == "all" else task.keep
        row = [
            name,
            f"{visible} of {task.side**2}",
            f"{1000 * best[name, 1]:.0f}",
            f"{best[name, 1] / best['all', 1]:.2f}",
            f"{flops:.1f}",
            f"{flops / all_flops:.2f}",
        ]
        if whole is not None:
            row += [f"{1000 * best[name, 2]:.0f}", f"{gflops(whole):.1f}", f"{best[name, 1] / best[name, 2]:.2f}"]
        table.add_row(*row)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()

"""Views a second: ours, batched, beside torchvision's transforms image by image in one process.

    python benchmarks/views.py [--rounds 10] [--sizes 32 64] [--batches 256 512]

The same uint8 colour images go into both, and the same augmentation comes out: SimCLR's crop, flip, jitter with hue,
grey and blur with the defaults of `zoo.views.simclr_view`. torchvision is timed twice, on tensors and on Pillow images,
and the ratio is to the faster of the two. All are timed in turn in every round; a table holds the best round of each,
since other work on the machine can only make a round slower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from zoo import views


def images(count: int, size: int) -> Tensor:
    """uint8 (count, 3, size, size): smooth shapes under noise."""
    draw = torch.Generator().manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(count, 3, 4, 4, generator=draw), size, mode="bicubic")
    return (255 * (x + 0.1 * torch.randn(x.shape, generator=draw)).clamp(0, 1)).to(torch.uint8)


def ours(size: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """What makes (B, 3, size, size) views of a batch."""
    return {
        "crop and flip": lambda x: views.random_resized_crop(x, size),
        "jitter with hue": lambda x: views.color_jitter(x, 0.4, 0.4, 0.4, 0.1),
        "grey": views.random_grayscale,
        "blur": views.random_blur,
        "whole view": lambda x: views.simclr_view(x, size),
    }


def torchvisions(size: int, pillow: bool) -> dict[str, Callable]:
    """What makes a view of one image, a tensor or a Pillow image."""
    kernel = max(3, int(0.1 * size) // 2 * 2 + 1)
    parts = {
        "crop and flip": [v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True), v2.RandomHorizontalFlip()],
        "jitter with hue": [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)],
        "grey": [v2.RandomGrayscale(0.2)],
        "blur": [v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], p=0.5)],
    }
    parts["whole view"] = [step for steps in parts.values() for step in steps]
    to_float = ([v2.PILToTensor()] if pillow else []) + [v2.ToDtype(torch.float32, scale=True)]
    return {name: v2.Compose(steps + to_float) for name, steps in parts.items()}


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(size: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Operation -> seconds a batch of ours, torchvision on tensors, torchvision on Pillow images; the best of the
    rounds.
    """
    x = images(batch, size)
    pictures = [to_pil_image(image) for image in x]
    batched, tensors, pillow = ours(size), torchvisions(size, pillow=False), torchvisions(size, pillow=True)
    best = {name: [float("inf")] * 3 for name in batched}
    for _ in range(rounds):
        for name in batched:
            batched[name](x)  # warm: the call before it worked on something else
            taken = [
                min(seconds(lambda: batched[name](x)) for _ in range(5)),
                seconds(lambda: torch.stack([tensors[name](image) for image in x])),
                seconds(lambda: torch.stack([pillow[name](picture) for picture in pictures])),
            ]
            best[name] = [min(pair) for pair in zip(best[name], taken, strict=True)]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 512])
    given = parser.parse_args()
    table = Table(title=f"views a second, colour, {torch.get_num_threads()} threads, best of {given.rounds} rounds")
    for column in (
        "pixels",
        "batch",
        "operation",
        "zoo",
        "torchvision, tensors",
        "torchvision, Pillow",
        "zoo / faster torchvision",
    ):
        table.add_column(column, justify="left" if column == "operation" else "right")
    torch.manual_seed(0)
    for size in given.sizes:
        for batch in given.batches:
            for name, (mine, tensors, pillow) in measure(size, batch, given.rounds).items():
                table.add_row(
                    str(size),
                    str(batch),
                    name,
                    *(f"{batch / taken:,.0f}" for taken in (mine, tensors, pillow)),
                    f"{min(tensors, pillow) / mine:.1f}",
                    end_section=name == "whole view",
                )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

"""Images a second of SimCLR at 32 pixels: our recipe machinery, a bare PyTorch loop of the same work, and lightly's
pipeline.

    python benchmarks/simclr.py [--backbone test_resnet] [--batch 256] [--steps 20] [--rounds 3]

All in one run, in turn, so that the ratios hold although the machine's speed drifts, and each time in a process of its
own that was forked after the imports, since what one asks of malloc would help the next. "bare" does the same
augmentation, forward, backward and step as ours without Lightning; "lightly" is its SimCLR transform per sample in a
DataLoader with two workers, its loss, under Lightning, on the same model.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import lightning as L
import torch
from torch import nn

from zoo.backbones import create_backbone
from zoo.data.dataset import Dataset
from zoo.data.datasets import DataInfo
from zoo.data.module import ZooData
from zoo.heads import projector
from zoo.losses import nt_xent
from zoo.optim import Optim
from zoo.tasks.image.simclr import SimCLR
from zoo.views import simclr_view

SIZE = 32


def images(count: int) -> Dataset:
    info = DataInfo("noise", ("image",), 3, SIZE, (), "1", "CC0-1.0", "", "", {}, "")
    draw = torch.Generator().manual_seed(0)
    fields = {"image": torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=draw)}
    order = torch.arange(count)
    return Dataset(info, fields, {"train": order, "validation": order[:0], "test": order[:0]}, "noise")


def _child(measure: Callable, arguments: tuple, pipe) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rate = measure(*arguments)
    pipe.send((rate, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def apart(measure: Callable, *arguments) -> tuple[float, float]:
    """What `measure` returns, images a second; and megabytes beyond what the imports take."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(measure, arguments, there))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


class Clock(L.Callback):
    """Seconds between the end of the first warm-up batches and the end of the last."""

    def __init__(self, warm: int):
        self.warm, self.seen = warm, 0

    def on_train_batch_end(self, *ignored) -> None:
        self.seen += 1
        self.end = time.perf_counter()
        if self.seen == self.warm:
            self.start = self.end


def trainer(steps: int, clock: Clock, precision: str) -> L.Trainer:
    return L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )


def ours(given: argparse.Namespace, keywords: dict) -> float:
    backbone = create_backbone(given.backbone, size=SIZE, **keywords)
    task = SimCLR(backbone)
    task.to(memory_format=torch.channels_last)
    clock = Clock(given.warm)
    data = ZooData(images(given.batch * (given.warm + given.steps)), given.batch)
    trainer(given.warm + given.steps, clock, given.precision).fit(task, data)
    return given.batch * given.steps / (clock.end - clock.start)


def bare(given: argparse.Namespace, keywords: dict) -> float:
    backbone = create_backbone(given.backbone, size=SIZE, **keywords)
    head = projector(backbone.num_features, 512, 128)
    both = nn.ModuleList([backbone, head]).to(memory_format=torch.channels_last).train()
    optim = Optim()
    optimizer = optim.build(both)
    data = images(given.batch * (given.warm + given.steps)).fields["image"]
    order, total = torch.randperm(len(data)), given.warm + given.steps
    for step in range(total):
        if step == given.warm:
            start = time.perf_counter()
        batch = data[order[step * given.batch : (step + 1) * given.batch]]
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * optim.scale((step + 0.5) / total)
        with torch.no_grad():
            views = torch.cat([simclr_view(batch, SIZE), simclr_view(batch, SIZE)])
        with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bf16-mixed"):
            loss = nt_xent(*head(backbone(views)).chunk(2), 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return given.batch * given.steps / (time.perf_counter() - start)


def lightlys(given: argparse.Namespace, keywords: dict, precision: str = "32-true") -> float:
    import timm
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from torchvision.transforms.functional import to_pil_image

    class Set(torch.utils.data.Dataset):
        def __init__(self, data, transform):
            self.data, self.transform = data, transform

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            return self.transform(to_pil_image(self.data[index]))

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model(given.backbone, num_classes=0, **keywords)
            self.head = SimCLRProjectionHead(self.backbone.num_features, 512, 128)
            self.criterion = NTXentLoss(0.2)

        def training_step(self, batch, index):
            first, second = (self.head(self.backbone(view)) for view in batch[:2])
            return self.criterion(first, second)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)

    data = images(given.batch * (given.warm + given.steps)).fields["image"]
    loader = torch.utils.data.DataLoader(
        Set(data, SimCLRTransform(input_size=SIZE)),
        given.batch,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        persistent_workers=True,
    )
    clock = Clock(given.warm)
    trainer(given.warm + given.steps, clock, precision).fit(Module(), loader)
    return given.batch * given.steps / (clock.end - clock.start)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--backbone", default="test_resnet")
    arguments.add_argument("--batch", type=int, default=256)
    arguments.add_argument("--steps", type=int, default=20, help="timed steps a round")
    arguments.add_argument("--warm", type=int, default=3, help="steps before the clock starts")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--precision", default="bf16-mixed", choices=["bf16-mixed", "32-true"])
    given = arguments.parse_args()
    rates: dict[str, list[float]] = {"ours": [], "bare loop": [], "lightly": [], "lightly, narrow": []}
    for _ in range(given.rounds):
        for name, measure in zip(rates, (ours, bare, lightlys, partial(lightlys, precision=given.precision))):
            rates[name].append(apart(measure, given, {})[0])
    print(
        f"SimCLR, {given.backbone}, {SIZE} px, batch {given.batch}, {given.precision}, {torch.get_num_threads()} "
        "threads, "
        f"{given.rounds} rounds of {given.steps} steps"
    )
    print(f"{'':16}{'images/s':>10}{'min':>8}{'max':>8}   ours / this, median of rounds")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], values))
        print(f"{name:16}{statistics.median(values):10.0f}{min(values):8.0f}{max(values):8.0f}   {ratio:.2f}")


if __name__ == "__main__":
    main()

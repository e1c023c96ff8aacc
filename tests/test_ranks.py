"""Two processes that share a batch compute what one process computes of the whole: loss, gradient and running statistics."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from zoo.heads import projector, use_global_batch_norm
from zoo.losses import gather, nt_xent, total


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(timm.create_model("test_resnet", num_classes=0), projector(96, 32, 16)).double()


def _images() -> torch.Tensor:
    return torch.randn(2, 16, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _facts(model: nn.Module, loss: torch.Tensor) -> dict:
    loss.backward()
    return {"loss": loss.detach(), "gradient": [p.grad for p in model.parameters() if p.grad is not None],
            "statistics": [b.clone() for name, b in model.named_buffers() if "running" in name]}


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    rows = torch.arange(6).view(6, 1)[rank::2].double()
    assert torch.equal(gather(rows).flatten(), torch.arange(6).double()), "the global batch is not in its order"
    assert total(torch.tensor(rank + 1.0)) == 3
    model = DistributedDataParallel(use_global_batch_norm(_model()))
    views = _images()[:, rank::2]
    loss = nt_xent(*model(views.flatten(0, 1)).chunk(2), 0.2)
    facts = _facts(model.module, loss)
    facts["loss"] = total(facts["loss"]) / 2
    if rank == 0:
        torch.save(facts, Path(folder) / "facts.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    two = torch.load(tmp_path / "facts.pt", weights_only=True)
    model = _model()
    one = _facts(model, nt_xent(*model(_images().flatten(0, 1)).chunk(2), 0.2))
    torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-9, atol=0)
    for kind in ("gradient", "statistics"):
        assert len(two[kind]) == len(one[kind]) > 0
        for a, b in zip(two[kind], one[kind]):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_one_process_with_global_statistics_is_plain_batch_norm():
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    plain, ours = _model(), use_global_batch_norm(_model())
    torch.testing.assert_close(plain(x), ours(x))
    torch.testing.assert_close(plain.state_dict(), ours.state_dict())
    plain.eval(), ours.eval()
    torch.testing.assert_close(plain(x), ours(x))

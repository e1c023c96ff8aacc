"""What makes training on a CPU quicker changes no result: convolutions on tiny maps, and malloc's thresholds."""

from __future__ import annotations

import copy
import ctypes
import subprocess
import sys

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.backbones import create_backbone
from zoo.data.datasets import data_info
from zoo.data.generated import generate
from zoo.data.module import ZooData
from zoo.machine import cpu
from zoo.tasks.create import create_task

GEOMETRIES = [  # kernel, stride, padding, map: all of them fewer pixels than the filter has
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 3), (1, 1), (1, 1), (2, 2)),
    ((3, 3), (2, 2), (1, 1), (2, 2)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((3, 3), (1, 1), (1, 1), (1, 2)),
    ((5, 5), (1, 1), (2, 2), (3, 2)),
    ((2, 3), (1, 2), (1, 1), (1, 2)),
]


def layers(kernel, stride, padding, bias=True) -> tuple[nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, kernel, stride, padding, bias=bias).double()
    tiny = copy.deepcopy(plain)
    cpu.quicken(tiny)
    assert type(tiny) is cpu.TinyMapConv2d
    return plain, tiny


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel, stride, padding, side", GEOMETRIES)
def test_a_convolution_on_a_tiny_map_is_the_same_one(kernel, stride, padding, side, bias, monkeypatch):
    plain, tiny = layers(kernel, stride, padding, bias)
    x = torch.randn(5, 4, *side, dtype=torch.float64, requires_grad=True)
    x_too = x.detach().clone().requires_grad_()
    expected = plain(x)
    towards = torch.randn_like(expected)
    expected.backward(towards)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda *ignored: pytest.fail("this went through torch's convolution"))
    found = tiny(x_too)
    found.backward(towards)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x_too.grad, x.grad, rtol=1e-12, atol=1e-12)
    for a, b in zip(tiny.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "kernel, stride, padding, side",
    [
        ((3, 3), (1, 1), (1, 1), (3, 3)),
        ((3, 3), (1, 1), (1, 1), (1, 4)),
        ((7, 7), (1, 1), (3, 3), (4, 4)),
        ((3, 3), (1, 1), (0, 0), (4, 2)),
    ],
)
def test_other_maps_are_left_to_torch(kernel, stride, padding, side, monkeypatch):
    plain, tiny = layers(kernel, stride, padding)
    x = torch.randn(2, 4, *side, dtype=torch.float64)
    monkeypatch.setattr(F, "linear", lambda *ignored: pytest.fail("this is no case for a matrix product"))
    try:
        expected = plain(x)
    except RuntimeError as error:  # a map smaller than its filter, which is torch's to refuse
        with pytest.raises(RuntimeError, match=str(error)[:30]):
            tiny(x)
    else:
        assert tiny(x).equal(expected)


def test_in_eval_mode_the_features_are_torchs_to_the_bit():
    backbone = create_backbone("test_resnet", size=28).eval()
    x = torch.rand(3, 3, 28, 28)
    expected = backbone.pool(x)
    cpu.quicken(backbone)
    assert backbone.pool(x).equal(expected)


def test_only_plain_convolutions_are_changed_and_only_for_a_while():
    class Mine(nn.Conv2d):
        pass

    others = [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        Mine(4, 4, 3),
    ]
    both = nn.Sequential(*others, nn.Conv2d(4, 4, 3))
    names = list(both.state_dict())
    cpu.quicken(both)
    assert [type(layer) for layer in both] == [*(type(layer) for layer in others), cpu.TinyMapConv2d]
    assert not any(isinstance(layer, cpu.TinyMapConv2d) for layer in others) and list(both.state_dict()) == names
    cpu.restore(both)
    assert type(both[-1]) is nn.Conv2d


@pytest.mark.parametrize("name", ["test_vit", "eva02_tiny_patch14_224"])
def test_attention_over_few_tokens_is_the_same_one(name):
    torch.manual_seed(0)
    keywords = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    fused = create_backbone(name, size=32, **keywords if name == "test_vit" else {"depth": 2, "patch_size": 8}).double()
    few, many = copy.deepcopy(fused), copy.deepcopy(fused)
    cpu.quicken(few, tokens=16)
    cpu.quicken(many, tokens=cpu.FEW_TOKENS + 1)

    def attentions(backbone):
        return [layer.fused_attn for layer in backbone.modules() if hasattr(layer, "fused_attn")]

    assert attentions(few) == [False, False] and attentions(many) == [True, True]
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    few.pool(x).square().sum().backward()
    fused.pool(x).square().sum().backward()
    for a, b in zip(few.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    cpu.restore(few)
    assert attentions(few) == [True, True]


def test_attention_that_nothing_is_known_of_or_that_was_not_fused_is_left_alone():
    fused, unfused = (
        create_backbone("test_vit", size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2) for _ in range(2)
    )
    unfused.model.blocks[0].attn.fused_attn = False
    cpu.quicken(fused)
    assert fused.model.blocks[0].attn.fused_attn
    cpu.quicken(unfused, tokens=16)
    cpu.restore(unfused)
    assert not unfused.model.blocks[0].attn.fused_attn


def test_a_fit_uses_it_and_leaves_a_plain_model():
    task = create_task("simclr", create_backbone("test_resnet", size=16))
    seen = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, module, *ignored):
            seen.append(sum(type(layer) is cpu.TinyMapConv2d for layer in module.backbone.modules()))

    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Look()],
    )
    trainer.fit(task, ZooData(generate(data_info("cifar10"), size=16), 8))
    assert seen[0] > 0 and not any(type(layer) is cpu.TinyMapConv2d for layer in task.modules())


FAULTS = """
import resource, torch
from zoo.machine import cpu
torch.set_num_threads(1)
def step():
    for _ in range(20):
        torch.ones(8, 2**19)            # 16 MB
def faults():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
{first}
print(faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc isn't glibc's here")
def test_memory_that_is_kept_costs_no_page_faults():
    def run(first: str) -> int:
        return int(
            subprocess.run(
                [sys.executable, "-c", FAULTS.format(first=first)], capture_output=True, text=True, check=True
            ).stdout
        )

    begin = "import ctypes; ctypes.CDLL(None).mallopt(-3, 2**17)"  # what glibc begins with, before it adapts
    kept, given_back = run(f"{begin}; cpu.keep_memory()"), run(begin)
    assert 10 * kept < given_back

"""SimMIM: the authors' loss, hidden pixels that never reach the network, and visible ones that cost nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.masks import mask_pixels
from zoo.tasks.image.simmim import SimMIM

VIT = dict(patch_size=8, depth=2, embed_dim=32, num_heads=2, class_token=False, global_pool="avg", fc_norm=False)


def _task(**arguments) -> SimMIM:
    torch.manual_seed(0)
    return SimMIM(create_backbone("vit_tiny_patch16_224", size=32, **VIT), **arguments)


def _views(task: SimMIM, channels: int = 3) -> tuple:
    image = torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with counted(torch.device("cpu"), 0):
        return task.views({"image": image, "index": torch.arange(4)})


def _authors_loss(task: SimMIM, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As in the authors' code: a 1x1 convolution and a PixelShuffle for the decoder, and |x - x_rec| * mask /
    mask.sum() / channels.

    PixelShuffle has the channel first in the numbering of what it spreads, (C, p, p), where our linear layer has it
    last.
    """
    model, p = task.backbone.model, 8
    x = model.patch_embed(task.backbone.normalize(image))
    token = task.mask_token.expand(len(x), x.shape[1], -1)
    w = mask.unsqueeze(-1).type_as(token)
    x = x * (1 - w) + token * w
    x = model.norm(model.blocks(x + model.pos_embed))
    z = x.permute(0, 2, 1).reshape(len(x), -1, 4, 4)
    weight = task.head.weight.view(p, p, 3, -1).permute(2, 0, 1, 3).reshape(p * p * 3, -1, 1, 1)
    bias = task.head.bias.view(p, p, 3).permute(2, 0, 1).reshape(-1)
    painted = F.pixel_shuffle(F.conv2d(z, weight, bias), p)
    mask = mask.view(-1, 4, 4).repeat_interleave(p, 1).repeat_interleave(p, 2).unsqueeze(1)
    loss = F.l1_loss(image, painted, reduction="none")
    return (loss * mask).sum() / (mask.sum() + 1e-5) / 3


def test_the_loss_is_the_authors():
    task = _task()
    image, mask = _views(task)
    ours, theirs = task((image, mask)).loss, _authors_loss(task, image, mask)
    torch.testing.assert_close(ours, theirs)
    parameters = list(task.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), rtol=1e-4, atol=1e-6
    )


def test_hidden_pixels_change_the_target_but_never_the_prediction():
    task = _task().eval()
    image, mask = _views(task)
    other = torch.where(mask_pixels(mask, 8), torch.rand_like(image), image)
    with torch.no_grad():
        assert torch.equal(task.paint(image, mask), task.paint(other, mask))
        assert not torch.equal(task((image, mask)).loss, task((other, mask)).loss)
        seen = torch.where(mask_pixels(mask, 8), image, torch.rand_like(image))
        assert not torch.equal(task.paint(image, mask), task.paint(seen, mask))


def test_an_error_on_visible_patches_costs_nothing_and_a_perfect_guess_is_zero():
    task = _task().eval()
    image, mask = _views(task)
    torch.nn.init.zeros_(task.head.weight), torch.nn.init.constant_(task.head.bias, 0.25)
    flat = torch.where(mask_pixels(mask, 8), torch.full_like(image, 0.25), image)
    assert task((flat, mask)).loss == 0
    assert (mask.sum(1) == task.hidden).all() and task.hidden == 10  # 0.6 of 16 patches


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour(channels):
    task = _task()
    image, mask = _views(task, channels)
    assert image.shape == (4, 3, 32, 32) and mask.shape == (4, 16) and task((image, mask)).loss.isfinite()


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_mask_that_hides_all_or_nothing_is_refused(ratio):
    with pytest.raises(ZooError, match="mask_ratio"):
        _task(mask_ratio=ratio)


def test_a_convolutional_backbone_is_refused():
    with pytest.raises(ZooError, match="simmim needs .* plain ViT"):
        SimMIM(create_backbone("test_resnet", size=32))

"""MAE: what is hidden stays hidden, and the target is the paper's."""

from __future__ import annotations

import pytest
import torch

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.masks import patchify, unpatchify
from zoo.tasks.image.mae import MAE

VIT = dict(patch_size=8, depth=2, embed_dim=32, num_heads=2, class_token=False, global_pool="avg", fc_norm=False)


def _task(channels_of_model: int = 3, **arguments) -> MAE:
    torch.manual_seed(0)
    keywords = VIT | ({"in_chans": 1} if channels_of_model == 1 else {})
    return MAE(create_backbone("vit_tiny_patch16_224", size=32, **keywords), decoder_dim=32, **arguments)


def _batch(channels: int = 3) -> dict:
    return {
        "image": torch.randint(
            0, 256, (4, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        ),
        "index": torch.arange(4),
    }


def _views(task: MAE, batch: dict) -> tuple:
    with counted(torch.device("cpu"), 0):
        return task.views(batch)


def _authors_patchify(imgs: torch.Tensor, p: int) -> torch.Tensor:
    """The formulation of the authors' own code."""
    h = w = imgs.shape[2] // p
    x = imgs.reshape(imgs.shape[0], imgs.shape[1], h, p, w, p)
    x = torch.einsum("nchpwq->nhwpqc", x)
    return x.reshape(imgs.shape[0], h * w, p**2 * imgs.shape[1])


def test_the_loss_is_the_authors():
    task = _task()
    image, keep, mask = _views(task, _batch())
    target = _authors_patchify(image, 8)
    mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
    target = (target - mean) / (var + 1.0e-6) ** 0.5
    theirs = (((task.paint(image, keep) - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()
    ours = task((image, keep, mask)).loss
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(loss, list(task.parameters()), retain_graph=True) for loss in (ours, theirs))
    torch.testing.assert_close(mine, other)


def test_patches_go_there_and_back():
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(patchify(image, 8), _authors_patchify(image, 8))
    assert torch.equal(unpatchify(patchify(image, 8), 8), image)


def test_hidden_pixels_change_the_target_but_never_the_prediction():
    task = _task().eval()
    image, keep, mask = _views(task, _batch())
    pixels = unpatchify(mask.unsqueeze(-1).expand(-1, -1, 192).float(), 8).bool()
    other = torch.where(pixels, torch.rand_like(image), image)
    with torch.no_grad():
        assert torch.equal(task.paint(image, keep), task.paint(other, keep))
        assert not torch.equal(task((image, keep, mask)).loss, task((other, keep, mask)).loss)


def test_an_error_on_visible_patches_costs_nothing():
    task = _task().eval()
    image, keep, mask = _views(task, _batch())
    assert (mask.sum(1) == 16 - task.keep).all() and not mask.gather(1, keep).any()
    painted = task.paint(image, keep)
    torch.nn.init.zeros_(task.decoder.last.weight), torch.nn.init.zeros_(task.decoder.last.bias)
    zero = task((image, keep, mask)).loss
    target = task.target(image)
    torch.testing.assert_close(zero, target[mask].square().mean())
    assert painted.shape == target.shape


@pytest.mark.parametrize("channels, channels_of_model", [(1, 3), (1, 1), (3, 3)])
def test_grey_and_colour(channels, channels_of_model):
    task = _task(channels_of_model)
    output = task(_views(task, _batch(channels)))
    assert output.loss.isfinite() and task.figure(_batch(channels))["reconstruction"].shape[0] == 3


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.99])
def test_a_mask_that_hides_all_or_nothing_is_refused(ratio):
    with pytest.raises(ZooError, match="mask_ratio"):
        _task(mask_ratio=ratio)


def test_a_convolutional_backbone_is_refused():
    with pytest.raises(ZooError, match="plain ViT"):
        MAE(create_backbone("test_resnet", size=32))


def test_the_backbone_pays_for_the_tokens_it_encodes():
    """Beyond the embedding of the patches, operations are in proportion to the tokens that are kept: 4 of 16 against 12
    of 16.
    """
    from torch.utils.flop_counter import FlopCounterMode

    def cost(ratio: float) -> int:
        task = _task(mask_ratio=ratio)
        image, keep, _ = _views(task, _batch())
        with FlopCounterMode(display=False) as whole:
            task.backbone.tokens(image, keep)
        with FlopCounterMode(display=False) as embedding:
            task.backbone.model.patch_embed(image)
        return whole.get_total_flops() - embedding.get_total_flops()

    assert 3 * cost(0.75) == cost(0.25) > 0


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"decoder_dim": 30}, "task.decoder_dim is 30; .* multiple of 4"),
        ({"decoder_dim": 32, "decoder_heads": 3}, "task.decoder_dim is 32; .*task.decoder_heads, 3"),
    ],
)
def test_a_decoder_that_its_heads_dont_divide_is_refused(arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        MAE(create_backbone("vit_tiny_patch16_224", size=32, **VIT), **arguments)

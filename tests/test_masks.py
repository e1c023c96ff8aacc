"""Masks hide exactly as many patches as they say, uniformly or in blocks; patches are laid out row by row."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from zoo import masks
from zoo.errors import ZooError

LEAST_P = 1e-4


def test_patches_are_pixels_row_by_row():
    image = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    patches = masks.patchify(image, 4)
    assert patches.shape == (2, 4, 48)
    assert torch.equal(patches[1, 2], image[1, :, 4:8, 0:4].permute(1, 2, 0).flatten())
    assert torch.equal(masks.unpatchify(patches, 4), image)


@pytest.mark.parametrize("draw", [lambda: masks.random_mask(4000, 16, 6), lambda: masks.random_keep(4000, 16, 10)[1]])
def test_random_masks_hide_each_patch_equally_often(draw):
    torch.manual_seed(0)
    mask = draw()
    assert mask.dtype == torch.bool and (mask.sum(1) == 6).all()
    assert ((mask.float().mean(0) - 6 / 16).abs() < 5 * (6 / 16 * 10 / 16 / 4000) ** 0.5).all()


def test_blocks_are_connected_and_everywhere():
    torch.manual_seed(0)
    mask = masks.block_mask(2000, 8, 24)
    assert (mask.sum(1) == 24).all()
    grid = mask.view(-1, 8, 8)
    apart = (grid[:, :, 1:] != grid[:, :, :-1]).sum((1, 2)) + (grid[:, 1:] != grid[:, :-1]).sum((1, 2))
    scattered = masks.random_mask(2000, 64, 24).view(-1, 8, 8)
    wild = (scattered[:, :, 1:] != scattered[:, :, :-1]).sum((1, 2)) + (scattered[:, 1:] != scattered[:, :-1]).sum(
        (1, 2)
    )
    assert apart.max() <= 24 < wild.min()  # the border of a block is short
    assert (mask.float().mean(0) > 0.15).all()  # even corners are hidden now and then
    assert len({tuple(row) for row in mask.tolist()}) > 300


@pytest.mark.parametrize("prefix", [0, 1, 4])
def test_hidden_tokens_are_those_of_hidden_patches_in_order(prefix):
    mask = torch.tensor([[False, True, True, False], [True, False, False, True]])
    tokens = torch.cat([torch.full((2, prefix, 1), -1.0), torch.arange(8.0).view(2, 4, 1)], 1)
    assert masks.hidden_tokens(tokens, mask).flatten().tolist() == [1, 2, 4, 7]


def test_what_is_kept_and_what_is_hidden_make_the_whole():
    mask = masks.random_mask(5, 16, 6)
    kept = masks.kept(mask)
    assert kept.shape == (5, 10) and not mask.gather(1, kept).any()
    pixels = masks.mask_pixels(mask, 4)
    assert pixels.shape == (5, 1, 16, 16)
    assert torch.equal(masks.patchify(pixels, 4).all(-1), mask) and torch.equal(masks.patchify(pixels, 4).any(-1), mask)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.01])
def test_a_ratio_that_hides_nothing_or_all_is_refused(ratio):
    with pytest.raises(ZooError, match="mask_ratio"):
        masks.hidden_count(ratio, 16)


@pytest.mark.parametrize(("tokens", "keep"), [(16, 4), (49, 12), (9, 8)])
def test_random_keep_is_a_uniform_choice_in_random_order(tokens, keep):
    torch.manual_seed(9)
    kept, mask = masks.random_keep(8000, tokens, keep)
    assert (
        kept.shape == (8000, keep)
        and kept.dtype == torch.int64
        and mask.shape == (8000, tokens)
        and mask.dtype == torch.bool
    )
    seen = torch.zeros(8000, tokens).scatter_add_(1, kept, torch.ones(8000, keep))
    assert torch.equal(seen, (~mask).float())  # none twice, and exactly those are not hidden
    assert chisquare(kept[:, 0].bincount(minlength=tokens)).pvalue > LEAST_P
    assert chisquare(kept[:, -1].bincount(minlength=tokens)).pvalue > LEAST_P
    share, spread = keep / tokens, (keep / tokens * (1 - keep / tokens) / 8000) ** 0.5
    assert (seen.mean(0) - share).abs().max() < 5 * spread
    together = float((seen[:, 0] * seen[:, 1]).mean())
    assert abs(together - share * (keep - 1) / (tokens - 1)) < 0.03

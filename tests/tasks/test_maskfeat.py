"""MaskFeat: histograms as scikit-image makes them, hidden pixels that never reach the network, and what the maths of
HOG demands.
"""

from __future__ import annotations

import math

import pytest
import torch

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.masks import mask_pixels
from zoo.tasks.image.maskfeat import MaskFeat, hog

VIT = dict(patch_size=8, depth=2, embed_dim=32, num_heads=2, class_token=False, global_pool="avg", fc_norm=False)


def _task(**arguments) -> MaskFeat:
    torch.manual_seed(0)
    return MaskFeat(create_backbone("vit_tiny_patch16_224", size=32, **VIT), **arguments)


def _views(task: MaskFeat, channels: int = 3) -> tuple:
    image = torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with counted(torch.device("cpu"), 0):
        return task.views({"image": image, "index": torch.arange(4)})


@pytest.mark.parametrize("cell, bins", [(8, 9), (4, 9), (7, 6)])
def test_hog_is_scikit_images(cell, bins):
    skimage = pytest.importorskip("skimage.feature")
    image = torch.rand(2, 3, 28 if cell == 7 else 32, 28 if cell == 7 else 32, dtype=torch.float64)
    ours = hog(image, image.shape[2] // cell, bins)
    for b in range(2):
        for c in range(3):
            theirs = skimage.hog(image[b, c].numpy(), bins, (cell, cell), (1, 1), block_norm="L2", feature_vector=False)
            torch.testing.assert_close(ours[b, c].permute(1, 2, 0), torch.from_numpy(theirs).squeeze(2, 3))


def test_hog_is_the_sum_over_pixels_one_by_one():
    image, cell, bins = torch.rand(1, 1, 8, 8, dtype=torch.float64), 4, 9
    x, votes = image[0, 0].tolist(), torch.zeros(bins, 2, 2, dtype=torch.float64)
    for r in range(8):
        for c in range(8):
            down = x[r + 1][c] - x[r - 1][c] if 0 < r < 7 else 0.0
            across = x[r][c + 1] - x[r][c - 1] if 0 < c < 7 else 0.0
            votes[int(math.degrees(math.atan2(down, across)) % 180 / (180 / bins)) % bins, r // cell, c // cell] += (
                math.hypot(down, across)
            )
    torch.testing.assert_close(hog(image, 8 // cell, bins)[0, 0], votes / votes.norm(dim=0), atol=1e-6, rtol=1e-6)


def test_hog_knows_neither_brightness_nor_contrast_nor_the_sign_of_an_edge():
    image = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    for other in (image + 0.3, image * 0.5, 1 - image):
        torch.testing.assert_close(hog(other, 2, 9), hog(image, 2, 9))
    assert hog(torch.full((1, 1, 16, 16), 0.7), 2, 9).abs().max() == 0


def test_a_patch_has_the_histograms_of_its_own_cells():
    task = _task(cells=2, bins=5)
    image = torch.rand(2, 3, 32, 32)
    target, cells = task.target(image), hog(image, 8, 5)  # (B, 16, 60), (B, 3, 5, 8, 8)
    for row, column in ((0, 0), (1, 3), (3, 2)):
        block = cells[:, :, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(target[:, 4 * row + column], block.permute(0, 3, 4, 2, 1).flatten(1))


def test_cells_that_do_not_divide_a_patch_stay_within_it():
    """Three cells on 8 pixels: 0 to 2, 2 to 5 and 5 to 7; what changes in the middle of one patch changes no other's
    histograms.
    """
    task, image = _task(cells=3), torch.rand(1, 3, 32, 32)
    other = image.clone()
    other[..., 11:13, 19:21] = 0
    changed = (task.target(image) != task.target(other)).any(2)[0].view(4, 4)
    assert changed.nonzero().tolist() == [[1, 2]]
    upright = torch.zeros(1, 1, 8, 8)
    upright[..., 5:] = 1  # gradients in columns 4 and 5, which the last two cells have
    assert hog(upright, 3, 9)[0, 0].amax(0).gt(0.5).tolist() == [[False, True, True]] * 3


def test_the_loss_is_the_mean_squared_error_of_hidden_patches():
    task = _task()
    image, mask, target = _views(task)
    assert (mask.sum(1) == 6).all()  # 0.4 of 16
    theirs = (task.guess(image, mask)[mask] - target[mask]).square().mean()  # the authors': output[mask], target[mask]
    ours = task((image, mask, target)).loss
    torch.testing.assert_close(ours, theirs)
    parameters = list(task.parameters())
    torch.testing.assert_close(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters))


def test_hidden_pixels_never_reach_the_prediction():
    task = _task().eval()
    image, mask, _ = _views(task)
    other = torch.where(mask_pixels(mask, 8), torch.rand_like(image), image)
    with torch.no_grad():
        assert torch.equal(task.guess(image, mask), task.guess(other, mask))
        assert not torch.equal(task.target(image)[mask], task.target(other)[mask])


def test_grey_pictures_have_the_same_histogram_in_each_channel():
    task = _task()
    target = _views(task, channels=1)[2].unflatten(2, (9, 3))
    assert torch.equal(target[..., 0], target[..., 2]) and target.abs().max() > 0


def test_strokes_lie_along_the_edge():
    """Brightness that grows to the right has its gradient across and its edges upright."""
    task = _task()
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    drawn = task.strokes(task.target(ramp))[0, 0, 8:16, 8:16]
    assert drawn.sum(0).max() > 3 * drawn.sum(1).max() > 0


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"cells": 9}, "task.cells is 9, and a patch has 8 pixels to a side"),
        ({"cells": 0}, "task.cells is 0"),
        ({"bins": 1}, "task.bins is 1"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        _task(**arguments)


def test_a_convolutional_backbone_is_refused():
    with pytest.raises(ZooError, match="maskfeat needs .* plain ViT"):
        MaskFeat(create_backbone("test_resnet", size=32))

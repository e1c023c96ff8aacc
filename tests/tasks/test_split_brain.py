"""Split brain: neither part tells of the other, targets are the nearest bins, and the loss is the sum of both cross
entropies.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.backbones import create_backbone
from zoo.colour import lab_to_rgb
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.tasks.image.split_brain import MIDDLE, SplitBrain


def _task(**arguments) -> SplitBrain:
    torch.manual_seed(0)
    return SplitBrain(create_backbone("test_resnet", size=32, output_stride=8), resolution=8, width=8, **arguments)


def _views(task: SplitBrain) -> tuple:
    image = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with counted(torch.device("cpu"), 0):
        return task.views({"image": image, "index": torch.arange(4)})


def _lab(lightness: tuple[float, float] = (40, 60), spread: float = 20.0) -> torch.Tensor:
    """Colours that sRGB can show."""
    draw = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return torch.cat([lightness[0] + draw[:, :1] * (lightness[1] - lightness[0]), (draw[:, 1:] - 0.5) * spread], 1)


def test_the_loss_is_both_cross_entropies_place_by_place():
    task = _task().eval()
    grey, colours, bins, levels = _views(task)
    of_grey, of_colours = task.to_colour(task.backbone.map(grey)), task.to_lightness(task.backbone.map(colours))
    theirs = sum(
        -scores.softmax(1).gather(1, target.unsqueeze(1)).log().sum() / target.numel()
        for scores, target in ((of_grey, bins), (of_colours, levels))
    )
    output = task((grey, colours, bins, levels))
    torch.testing.assert_close(output.loss, theirs)
    torch.testing.assert_close(output.loss, output.logs["colour"] + output.logs["lightness"])
    parameters = list(task.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(output.loss, parameters), torch.autograd.grad(theirs, parameters), rtol=1e-4, atol=1e-6
    )


def test_neither_part_tells_of_the_other():
    task, lab = _task(), _lab()
    darker, turned = lab.clone(), lab.clone()
    darker[:, 0] -= 25
    turned[:, 1:] = -lab[:, 1:]
    assert torch.equal(task.colours(lab), task.colours(darker)) and not torch.equal(task.grey(lab), task.grey(darker))
    assert torch.equal(task.grey(lab), task.grey(turned)) and not torch.equal(task.colours(lab), task.colours(turned))


def test_the_parts_hold_what_they_are_named_for():
    """scikit-image reads lightness off one and colours off the other."""
    skimage = pytest.importorskip("skimage.color")
    task, lab = _task(), _lab()
    colours = skimage.rgb2lab(task.colours(lab).permute(0, 2, 3, 1).numpy())
    assert (
        np.abs(colours[..., 0] - MIDDLE).max() < 0.1
        and np.abs(colours[..., 1:] - lab[:, 1:].permute(0, 2, 3, 1).numpy()).max() < 0.1
    )
    grey = task.grey(lab)
    assert torch.equal(grey[:, 0], grey[:, 2]) and torch.equal(grey[:, 1], lab[:, 0] / 100)


def test_targets_are_the_nearest_bins():
    from sklearn.neighbors import NearestNeighbors

    task, lab = _task(levels=4), _lab(spread=100.0)
    points = lab[:, 1:].permute(0, 2, 3, 1).reshape(-1, 2).numpy()
    theirs = NearestNeighbors(n_neighbors=1).fit(task.bins.numpy()).kneighbors(points, return_distance=False)[:, 0]
    assert np.array_equal(task.nearest(lab[:, 1:]).flatten().numpy(), theirs)
    assert task.level(torch.tensor([[[0.0, 24.9, 25.1, 60.0, 99.9, 100.0]]])).flatten().tolist() == [0, 0, 1, 2, 3, 3]


def test_views_lie_over_each_other():
    """All four are of one crop: here of whole pictures, of four flat squares each, away from their borders."""
    task = _task(smallest_crop=1.0, flip=0.0)
    lab = _lab((30, 70))[:, :, :2, :2].repeat_interleave(16, 2).repeat_interleave(16, 3)
    with counted(torch.device("cpu"), 0):
        grey, colours, bins, levels = task.views({"image": lab_to_rgb(lab)})
    place = [0, 1, 2, 5, 6, 7]
    small = lab[:, :, 2::4, 2::4]
    for found, wanted in ((bins, task.nearest(small[:, 1:])), (levels, task.level(small[:, 0]))):
        assert torch.equal(found[:, place][:, :, place], wanted[:, place][:, :, place]) and len(wanted.unique()) > 2
    torch.testing.assert_close(grey, task.grey(lab), atol=1e-3, rtol=0)
    torch.testing.assert_close(colours, task.colours(lab), atol=5e-3, rtol=0)


def test_features_of_the_parts():
    task = _task().eval()
    with torch.no_grad():
        found, grey = task.features(torch.rand(3, 3, 32, 32)), task.features(torch.rand(3, 1, 32, 32))
    width = task.backbone.num_features
    assert (
        found["backbone"].shape == (3, width) and found["parts"].shape == (3, 2 * width) and grey.keys() == {"backbone"}
    )


def test_grey_pictures_are_refused():
    with pytest.raises(ZooError, match="split-brain needs colour"):
        _task().views({"image": torch.zeros(2, 1, 32, 32)})

"""Colourisation: bins, soft encoding, rebalancing and annealed mean as the paper defines them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.backbones import create_backbone
from zoo.errors import ZooError
from zoo.tasks.image.colorize import Colorize, colour_bins
from zoo.views import lab_to_rgb, rgb_to_lab


def _task(**arguments) -> Colorize:
    torch.manual_seed(0)
    return Colorize(create_backbone("test_resnet", size=32, output_stride=8), resolution=8, width=16, **arguments)


def _batch() -> dict:
    return {
        "image": torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        "index": torch.arange(4),
    }


def test_every_bin_is_in_gamut_and_every_colour_has_a_bin():
    bins = colour_bins(10)
    assert 200 < len(bins) < 330  # the paper's list, made with a margin, has 313
    colours = torch.rand(5000, 3, 1, 1)
    ab = rgb_to_lab(colours)[:, 1:, 0, 0]
    assert torch.cdist(ab, bins).min(1).values.max() <= 50**0.5 + 1e-3  # half the diagonal of a square of 10


def test_soft_encoding_is_the_papers():
    """The authors encode with scikit-learn's neighbours and a Gaussian of sigma 5."""
    from sklearn.neighbors import NearestNeighbors

    task, ab = _task(), torch.rand(2, 2, 8, 8) * 100 - 50
    nearest, share = (part.flatten(0, 2) for part in task.encode(ab))
    points = ab.permute(0, 2, 3, 1).reshape(-1, 2).numpy()
    distance, index = NearestNeighbors(n_neighbors=5).fit(task.bins.numpy()).kneighbors(points)
    weight = np.exp(-(distance**2) / (2 * 5**2))
    weight /= weight.sum(1, keepdims=True)
    ours, theirs = (np.zeros((len(points), len(task.bins))) for _ in range(2))
    np.put_along_axis(ours, nearest.numpy(), share.numpy(), 1)
    np.put_along_axis(theirs, index, weight, 1)
    assert np.abs(ours - theirs).max() < 0.02  # five neighbours may tie; the distributions agree but for those
    assert np.median(np.abs(ours - theirs).max(1)) < 1e-5


def test_the_loss_is_weighted_cross_entropy_with_the_soft_target():
    task = _task().eval()
    task.seen += torch.rand(len(task.bins)) * 100
    lightness, ab = task.views(_batch())
    nearest, share = (part.flatten(0, 2) for part in task.encode(ab))
    target = torch.zeros(len(nearest), len(task.bins)).scatter(1, nearest, share)
    logits = task.head(task.backbone.map(lightness)).permute(0, 2, 3, 1).reshape(-1, len(task.bins))
    weight = task.weights()[target.argmax(1)]
    theirs = (weight * torch.nn.functional.cross_entropy(logits, target, reduction="none")).mean()
    ours = task((lightness, ab)).loss
    torch.testing.assert_close(ours, theirs)
    parameters = [p for p in task.parameters() if p.requires_grad]
    mine, other = (
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in (ours, theirs)
    )
    for a, b in zip(mine, other):
        torch.testing.assert_close(a, b)


def test_rare_colours_weigh_more_and_the_expected_weight_is_one():
    task = _task()
    task.seen[0], task.seen[1:] = 1e6, 10.0
    weight, occurs = task.weights(), (task.seen + 1) / (task.seen + 1).sum()
    assert weight.argmin() == 0 and (weight[-1] / weight[0]) > 5
    torch.testing.assert_close((weight * occurs).sum(), torch.tensor(1.0))
    even = _task(rebalance=1.0)
    even.seen[0] = 1e6
    torch.testing.assert_close(even.weights(), torch.ones(len(even.bins)))


def test_colours_are_counted_while_training_only():
    task = _task()
    views = task.views(_batch())
    task(views)
    assert task.seen.sum() == pytest.approx(4 * 8 * 8, rel=1e-4)
    task.eval()(views)
    assert task.seen.sum() == pytest.approx(4 * 8 * 8, rel=1e-4)


def test_annealed_mean_lies_between_mode_and_mean():
    task, logits = _task(), torch.randn(1, len(colour_bins(10)), 2, 2) * 3
    task.temperature = 1.0
    torch.testing.assert_close(task.decode(logits), torch.einsum("bqhw,qc->bchw", logits.softmax(1), task.bins))
    task.temperature = 1e-4
    torch.testing.assert_close(task.decode(logits), task.bins[logits.argmax(1)].permute(0, 3, 1, 2))


def test_regression_predicts_ab_itself():
    task = _task(loss="regression")
    lightness, ab = task.views(_batch())
    predicted = task.head(task.backbone.map(lightness))
    torch.testing.assert_close(task((lightness, ab)).loss, ((predicted * 100 - ab) / 100).pow(2).sum(1).mean())
    assert predicted.shape == ab.shape == (4, 2, 8, 8)


def test_no_colour_reaches_the_network():
    """The lightness of a picture and of its grey version are the same, and so is what the network sees."""
    image = torch.rand(2, 3, 16, 16)
    lightness = rgb_to_lab(image)[:, :1]
    grey = lab_to_rgb(torch.cat([lightness, torch.zeros(2, 2, 16, 16)], 1))
    torch.testing.assert_close(rgb_to_lab(grey)[:, :1], lightness, atol=0.05, rtol=0)
    task = _task(smallest_crop=1.0, flip=0.0)
    assert task.views({"image": (image * 255).byte()})[0].shape == (2, 1, 32, 32)


def test_at_the_start_the_backbone_reads_the_channels_alike():
    task = _task().eval()
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            task.backbone(image), task.backbone(image.mean(1, keepdim=True)), atol=1e-5, rtol=1e-4
        )


def test_grey_pictures_and_a_senseless_balance_are_refused():
    with pytest.raises(ZooError, match="colour"):
        _task().views({"image": torch.zeros(2, 1, 32, 32, dtype=torch.uint8)})
    with pytest.raises(ZooError, match="rebalance"):
        _task(rebalance=0.0)


def test_features_and_picture():
    task = _task().eval()
    with torch.no_grad():
        assert set(task.features(torch.rand(2, 3, 32, 32))) == {"backbone", "grey"}
    assert task.figure(_batch())["colours"].shape[0] == 3

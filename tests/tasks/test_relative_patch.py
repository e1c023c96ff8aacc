"""Relative places: where patches are cut, what guards against colour fringes, and the classification of pairs."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.backbones import create_backbone
from zoo.errors import ZooError
from zoo.tasks.image.relative_patch import RelativePatch


def _task(size: int = 28, **arguments) -> RelativePatch:
    torch.manual_seed(0)
    return RelativePatch(create_backbone("test_resnet", size=size, output_stride=8), **arguments)


def _image(count: int = 3, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, 28, 28, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_the_papers():
    """Pair by pair: both patches through one network, side by side into the classifier, and minus the log probability
    of the true place.
    """
    task = _task().eval()
    (patches,) = views = task.views({"image": _image()})
    ours = task(views).loss
    theirs = 0.0
    for picture in patches:
        centre = task.backbone.pool(picture[:1])
        for place in range(8):
            scores = task.head(torch.cat([centre, task.backbone.pool(picture[place + 1 : place + 2])], 1))[0]
            theirs = theirs - (scores[place].exp() / scores.exp().sum()).log() / (8 * len(patches))
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(loss, list(task.parameters()), retain_graph=True) for loss in (ours, theirs))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_neighbours_lie_where_they_are_said_to():
    """A picture whose pixels are numbered tells where each patch was cut: patches of 7 in a pitch of 9, moved by at
    most 1.
    """
    task = _task(tile=7, colour="keep", smallest_crop=1.0, flip=0.0)
    number = torch.arange(28.0) / 28
    image = torch.stack([number[:, None].expand(28, 28), number.expand(28, 28), torch.zeros(28, 28)]).expand(
        200, 3, 28, 28
    )
    corner = (task.cut(image)[:, :, :2, 0, 0] * 28).round().long()  # (B, 9, 2): row and column
    assert corner.min() >= 0 and corner.max() <= 28 - 7
    away = (corner[:, 1:] - corner[:, :1]) - 9 * torch.tensor(
        [[-1, -1], [-1, 0], [-1, 1], [0, -1], [0, 1], [1, -1], [1, 0], [1, 1]]
    )
    assert {-1, 0, 1} == set(away.flatten().tolist())
    assert len(corner[:, 0].unique(dim=0)) > 1  # nor is the centre always in one place
    gaps = [(corner[:, 5] - corner[:, 0])[:, 1] - 7, (corner[:, 0] - corner[:, 4])[:, 1] - 7]
    assert min(gap.min() for gap in gaps) >= 1  # jitter eats into the gap, never through it


def test_dropping_leaves_one_channel_and_faint_noise():
    task, patches = _task(), _image(40).unsqueeze(1).expand(-1, 9, -1, -1, -1)
    seen = task.guarded(patches)
    same = (seen == patches).flatten(3).all(3)  # (B, 9, 3)
    assert (same.sum(2) == 1).all() and {0, 1, 2} == set(same.float().argmax(2).flatten().tolist())
    dropped = task.backbone.normalize(seen.flatten(0, 1)).view_as(seen)[~same]
    kept = patches[same]
    assert dropped.mean((1, 2)).abs().max() < 0.02
    noise = (seen - task.backbone.shift)[~same].unflatten(0, (-1, 2)).std((1, 2, 3))
    torch.testing.assert_close(noise, kept.std((1, 2)) / 100, rtol=0.15, atol=0)


def test_projecting_takes_green_against_magenta_out():
    task, patches = _task(colour="project"), _image().unsqueeze(1).expand(-1, 9, -1, -1, -1)
    axis = torch.tensor([-1.0, 2.0, -1.0])
    matrix = torch.eye(3) - torch.outer(axis, axis) / 6  # B = I - a'a / (a a'), section 3
    seen = task.guarded(patches)
    torch.testing.assert_close(seen, (patches.movedim(2, -1) @ matrix).movedim(-1, 2))
    assert (seen.movedim(2, -1) @ axis).abs().max() < 1e-5
    grey = patches[:, :, :1].expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(task.guarded(grey), grey)


def test_grey_pictures_have_no_fringes():
    for colour in ("drop", "project"):
        patches = _image(2, 1).unsqueeze(1).expand(-1, 9, -1, -1, -1)
        assert torch.equal(_task(colour=colour).guarded(patches), patches)


def test_a_network_that_compares_nothing_pays_log_8():
    task = _task()
    views = task.views({"image": _image()})
    first = task.head[0].weight  # a classifier that sees the central patch alone can't tell its neighbours apart
    torch.nn.init.zeros_(first[:, first.shape[1] // 2 :].data)
    assert task(views).loss.item() >= math.log(8) - 1e-6 and task(views).logs["accuracy"] == pytest.approx(1 / 8)


def test_patches_are_laid_where_they_are_believed():
    task = _task(tile=4)
    patches = torch.arange(9.0).view(1, 9, 1, 1, 1).expand(1, 9, 1, 4, 4)
    laid = task.laid(patches, torch.arange(8)[None])[0, 0, 2::5, 2::5]
    assert laid.tolist() == [[1, 2, 3], [4, 0, 5], [6, 7, 8]]
    assert task.laid(patches, torch.zeros(1, 8, dtype=torch.long))[0, 0, 2::5, 2::5].tolist() == [
        [8, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
    ]


def test_patches_that_dont_fit_are_refused():
    for arguments in ({"patch": 0.4}, {"gap": 2.0}, {"jitter": 1.0}, {"patch": 0.01}):
        with pytest.raises(ZooError, match="task.patch, task.gap and task.jitter"):
            _task(**arguments)


def test_neighbours_that_could_reach_into_the_centre_are_refused():
    with pytest.raises(
        ZooError, match="task.jitter moves neighbours by up to 3 pixels, over the gap of 1.*larger task.gap"
    ):
        _task(32, patch=0.2, gap=0.0, jitter=0.5)
    _task(32, patch=0.2, gap=0.0, jitter=0.2)  # up to the very edge
    for size in (16, 24, 28, 32, 64, 96, 224):
        _task(size)

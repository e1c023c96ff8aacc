"""SimCLR: two views of each picture, one loss over all of them."""

from __future__ import annotations

import torch

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.losses import nt_xent
from zoo.tasks.image.simclr import SimCLR


def _task(**arguments) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(create_backbone("test_resnet", size=32, output_stride=8), hidden=32, outputs=16, **arguments)


def _batch(channels: int = 3) -> dict:
    return {"image": torch.randint(0, 256, (8, channels, 32, 32), dtype=torch.uint8), "index": torch.arange(8)}


def test_views_are_two_differ_and_follow_the_counters():
    task, batch = _task(), _batch()
    with counted(torch.device("cpu"), 1):
        first, second = task.views(batch)
    with counted(torch.device("cpu"), 1):
        again, _ = task.views(batch)
    assert first.shape == second.shape == (8, 3, 32, 32) and first.dtype == torch.float32
    assert torch.equal(first, again)
    assert (first - second).abs().mean((1, 2, 3)).min() > 1e-3


def test_both_views_pass_through_backbone_and_projector_as_one_batch():
    task = _task()
    views = task.views(_batch())
    output = task(views)
    task.zero_grad()
    z = task.projector(task.backbone(torch.cat(views)))
    torch.testing.assert_close(output.loss, nt_xent(z[:8], z[8:], task.temperature))
    assert -1 <= output.logs["alignment"] <= 1 and not output.logs["alignment"].requires_grad


def test_without_augmentation_the_views_are_the_picture_and_align_fully():
    task = _task(smallest_crop=1.0, jitter=0.0, grayscale=0.0, blur=0.0, flip=0.0)
    first, second = task.views(batch := _batch())
    torch.testing.assert_close(
        first, batch["image"].float() / 255, atol=0.06, rtol=0
    )  # a crop of another ratio remains
    torch.testing.assert_close(task((first, first)).logs["alignment"], torch.tensor(1.0))


def test_grey_pictures_and_the_drawing():
    task = _task()
    assert task(task.views(_batch(1))).loss.isfinite()
    assert task.figure(_batch(1))["views"].shape[0] == 3


def test_the_drawing_has_a_row_for_each_picture_with_its_nearest_behind_it():
    """Four pictures, each twice: behind a picture stands the other of its kind."""
    task = _task().eval()
    image = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8).repeat(2, 1, 1, 1)
    drawn = task.figure({"image": image, "index": torch.arange(8)})["nearest"]
    rows = [drawn[:, 34 * row + 2 : 34 * row + 34] for row in range(8)]
    for row, picture in zip(rows, image.float() / 255, strict=True):
        assert row.shape[2] == 8 * 34 + 2
        torch.testing.assert_close(row[:, :, 2:34], picture)
        torch.testing.assert_close(row[:, :, 36:68], picture)
        assert (row[:, :, 70:102] - picture).abs().mean() > 0.1

"""BYOL: the authors' loss, a teacher that never gets a gradient and follows at the end of a step, and two kinds of
view.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.tasks.image.byol import BYOL


def _task(**arguments) -> BYOL:
    torch.manual_seed(0)
    return BYOL(create_backbone("test_resnet", size=32, output_stride=8), hidden=32, outputs=16, **arguments)


def _views(task: BYOL, channels: int = 3) -> tuple:
    image = torch.randint(0, 256, (8, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with counted(torch.device("cpu"), 0):
        return task.views({"image": image, "index": torch.arange(8)})


def _authors_loss(task: BYOL, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """As in the authors' code: regression_loss(x, y) = mean(sum((x / |x| - y / |y|)^2)), for each view and the
    teacher's other one.
    """

    def regression(x, y):
        return (F.normalize(x, dim=-1) - F.normalize(y.detach(), dim=-1)).pow(2).sum(-1).mean()

    body, head = task.teacher[0], task.teacher[1]
    online = [
        task.predictor(task.projector(task.backbone.model(task.backbone.normalize(view)))) for view in (first, second)
    ]
    target = [head(body.model(body.normalize(view))) for view in (first, second)]
    return regression(online[0], target[1]) + regression(online[1], target[0])


def test_the_loss_is_the_authors():
    task = _task()
    with torch.no_grad():
        for parameter in task.teacher.parameters():
            parameter.mul_(1.1)  # another network than the student
    first, second = _views(task)
    ours, theirs = task((first, second)).loss, _authors_loss(task, first, second)
    torch.testing.assert_close(ours, theirs)
    parameters = [p for p in task.parameters() if p.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), rtol=1e-4, atol=1e-6
    )


def test_the_loss_is_lightlys():
    from_lightly = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    task, prediction, target = _task(), torch.randn(8, 16), torch.randn(8, 16)
    torch.testing.assert_close(task.distance(prediction, target), 2 + 2 * from_lightly(prediction, target))
    torch.testing.assert_close(task.distance(prediction, 3 * prediction), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_exchanging_the_views_leaves_the_loss():
    task = _task()
    first, second = _views(task)
    torch.testing.assert_close(task((first, second)).loss, task((second, first)).loss)


def test_the_teacher_follows_with_a_momentum_that_ends_at_one():
    task = _task(momentum=0.9)
    before = [p.clone() for p in task.teacher.parameters()]
    with torch.no_grad():
        for parameter in (*task.backbone.parameters(), *task.projector.parameters()):
            parameter.add_(1.0)
    task.after_step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, task.teacher.parameters()))
    task.after_step(0.0)
    for was, now in zip(before, task.teacher.parameters()):
        torch.testing.assert_close(now, was + 0.1, rtol=1e-4, atol=1e-5)
    assert not any(name.startswith("teacher") for name in task.heads()) and any(
        name.startswith("predictor") for name in task.heads()
    )


def test_only_the_second_view_is_solarised():
    task = _task(smallest_crop=1.0, jitter=0.0, grayscale=0.0, blur=0.0, flip=0.0, solarize=1.0)
    white = {"image": torch.full((4, 3, 32, 32), 255, dtype=torch.uint8), "index": torch.arange(4)}
    first, second = task.views(white)
    assert first.min() > 0.99 and second.max() < 0.01


def test_grey_pictures_and_the_drawing():
    task = _task()
    assert task(_views(task, 1)).loss.isfinite()
    assert task.figure({"image": torch.rand(4, 1, 32, 32), "index": torch.arange(4)})["views"].shape[0] == 3

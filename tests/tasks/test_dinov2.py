"""DINOv2: balanced targets, a head each for pictures and patches, and a regulariser that keeps the pictures of the
global batch apart.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.masks import mask_pixels
from zoo.tasks.image.dinov2 import DINOv2, koleo

VIT = dict(
    patch_size=8,
    depth=1,
    embed_dim=32,
    num_heads=2,
    class_token=False,
    global_pool="avg",
    fc_norm=False,
    dynamic_img_size=True,
)


def _task(**arguments) -> DINOv2:
    torch.manual_seed(0)
    made = create_backbone("vit_tiny_patch16_224", size=32, **VIT)
    return DINOv2(
        made, **{"prototypes": 24, "hidden": 32, "bottleneck": 16, "small_count": 2, "small_size": 16, **arguments}
    )


def _views(task: DINOv2, channels: int = 3) -> tuple:
    image = torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with counted(torch.device("cpu"), 0):
        return task.views({"image": image, "index": torch.arange(4)})


def _authors_sinkhorn(scores: torch.Tensor, temperature: float, iterations: int) -> torch.Tensor:
    """sinkhorn_knopp_teacher of the authors' DINOLoss."""
    Q = torch.exp(scores / temperature).t()
    B, K = Q.shape[1], Q.shape[0]
    Q /= torch.sum(Q)
    for _ in range(iterations):
        Q /= torch.sum(Q, dim=1, keepdim=True)
        Q /= K
        Q /= torch.sum(Q, dim=0, keepdim=True)
        Q /= B
    return (Q * B).t()


def _authors_koleo(x: torch.Tensor) -> torch.Tensor:
    """KoLeoLoss of the authors' code."""
    x = F.normalize(x, eps=1e-8, p=2, dim=-1)
    dots = torch.mm(x, x.t())
    dots.view(-1)[:: (x.shape[0] + 1)].fill_(-1)
    return -torch.log(torch.nn.PairwiseDistance(2, eps=1e-8)(x, x[dots.max(dim=1)[1]]) + 1e-8).mean()


def _authors_loss(
    task: DINOv2, large: torch.Tensor, small: torch.Tensor, mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    model, teacher = task.backbone.model, task.teacher[0].model
    flat, hidden = large.flatten(0, 1), mask.flatten(0, 1)
    x = model.patch_embed(task.backbone.normalize(flat)).flatten(1, -2)
    tokens = model.norm(model.blocks(torch.where(hidden[..., None], task.mask_token, x) + model.pos_embed))
    whole = tokens.mean(1).unflatten(0, (4, 2))
    parts = model.forward_features(task.backbone.normalize(small.flatten(0, 1))).mean(1).unflatten(0, (4, 2))
    student = task.head(torch.cat([whole, parts], 1).flatten(0, 1)).unflatten(0, (4, 4))
    student_patches = task.patch_head(tokens[hidden])
    with torch.no_grad():
        taught = teacher.forward_features(task.backbone.normalize(flat))
        q = _authors_sinkhorn(task.teacher[1](taught.mean(1)), 0.07, 3).unflatten(0, (4, 2))
        qp = _authors_sinkhorn(task.teacher[2](taught[hidden]), 0.07, 3)
    pairs = [
        (-q[:, i] * F.log_softmax(student[:, j] / 0.1, -1)).sum(-1).mean() for i in range(2) for j in range(4) if i != j
    ]
    patches = (-qp * F.log_softmax(student_patches / 0.1, -1)).sum(-1).mean()
    return {
        "picture_loss": sum(pairs) / 6,
        "patch_loss": patches,
        "koleo": _authors_koleo(whole[:, 0]) + _authors_koleo(whole[:, 1]),
    }


def test_the_loss_is_the_authors():
    task = _task(patch_weight=0.7, koleo_weight=0.2)
    views = _views(task)
    theirs = _authors_loss(task, *views)
    output, together = task(views), theirs["picture_loss"] + 0.7 * theirs["patch_loss"] + 0.2 * theirs["koleo"]
    for name, value in theirs.items():
        torch.testing.assert_close(output.logs[name], value.detach(), msg=lambda text, name=name: f"{name}\n{text}")
    torch.testing.assert_close(output.loss, together)
    parameters = [p for p in task.parameters() if p.requires_grad]
    mine, other = (torch.autograd.grad(loss, parameters) for loss in (output.loss, together))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_the_regulariser_is_lightlys():
    from_lightly = pytest.importorskip("lightly.loss").KoLeoLoss()
    x = torch.randn(12, 8, dtype=torch.float64, requires_grad=True)
    ours, theirs = koleo(x), from_lightly(x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, theirs)))
    torch.testing.assert_close(koleo(5 * x), ours)


def test_the_regulariser_keeps_pictures_apart():
    """On a circle, equally spaced points have the largest distance to their nearest, 2 sin(pi / n), and a step down the
    gradient spreads others.
    """
    angle = torch.arange(6) * torch.pi / 3
    even = torch.stack([angle.cos(), angle.sin()], 1)
    torch.testing.assert_close(
        koleo(even), -torch.tensor(2 * torch.sin(torch.tensor(torch.pi / 6)).item()).log(), atol=1e-5, rtol=0
    )
    torch.manual_seed(0)
    close = (even[:1] + 0.05 * torch.randn(6, 2)).requires_grad_()
    before = koleo(close)
    (gradient,) = torch.autograd.grad(before, close)
    assert before > koleo(even) and koleo(close - 1e-4 * gradient) < before


def test_the_regulariser_is_of_the_global_batch(monkeypatch):
    rows = torch.randn(6, 4, dtype=torch.float64)
    whole = koleo(rows)
    monkeypatch.setattr("zoo.tasks.image.dinov2.gather", lambda x: F.normalize(rows))
    torch.testing.assert_close(koleo(rows[::2]), whole)
    assert not torch.isclose(whole, _authors_koleo(rows[::2]))


def test_pictures_and_patches_have_a_head_each():
    task = _task()
    assert {name.split(".")[0] for name in task.heads()} == {"head", "patch_head", "mask_token"}
    views = _views(task)
    before = task(views).logs
    with torch.no_grad():
        task.patch_head[-1].weight.normal_()
    after = task(views).logs
    assert before["picture_loss"] == after["picture_loss"] and before["patch_loss"] != after["patch_loss"]


def test_no_small_views_grey_pictures_the_drawing_and_nonsense():
    task = _task(small_count=0)
    task(_views(task, 1)).loss.backward()
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)
    assert task.figure({"image": torch.rand(4, 1, 32, 32), "index": torch.arange(4)})["views"].shape[0] == 3
    with pytest.raises(ZooError, match="task.iterations is 0"):
        _task(iterations=0)
    with pytest.raises(ZooError, match="task.teacher_temperature is 0.2"):
        _task(teacher_temperature=0.2)
    with pytest.raises(ZooError, match="task.smallest_crop is 0.01"):
        _task(smallest_crop=0.01)
    with pytest.raises(ZooError, match="encode a part of its patches"):
        DINOv2(create_backbone("test_resnet", size=32))


def test_hidden_pixels_change_the_target_and_never_what_the_student_says():
    task, said = _task().eval(), []
    large, small, mask = _views(task)
    other = torch.where(
        mask_pixels(mask.flatten(0, 1), 8), torch.rand_like(large.flatten(0, 1)), large.flatten(0, 1)
    ).view_as(large)
    for head in (task.head, task.patch_head):
        head.register_forward_hook(lambda module, given, out: said.append(out.detach()))
    for views in (large, other):
        task((views, small, mask))
    one, two = said[: len(said) // 2], said[len(said) // 2 :]
    assert len(one) >= 2 and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, two, strict=True))
    taught = [task.teach(views.flatten(0, 1), mask.flatten(0, 1))[1] for views in (large, other)]
    assert (taught[0] - taught[1]).abs().max() > 1e-3

"""iBOT: DINO's loss between views and the authors' loss of hidden patches within a view, which the student never
sees.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.masks import mask_pixels
from zoo.tasks.image.ibot import IBOT

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


def _task(keywords: dict = VIT, **arguments) -> IBOT:
    torch.manual_seed(0)
    made = create_backbone("vit_tiny_patch16_224", size=32, **keywords)
    return IBOT(
        made, **{"prototypes": 24, "hidden": 32, "bottleneck": 16, "small_count": 2, "small_size": 16, **arguments}
    )


def _views(task: IBOT, channels: int = 3) -> tuple:
    image = torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with counted(torch.device("cpu"), 0):
        return task.views({"image": image, "index": torch.arange(4)})


def _authors_loss(
    task: IBOT, large: torch.Tensor, small: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The double loop of iBOTLoss in the authors' code: pairs of different views for pictures, of the same view for
    patches.
    """
    model, teacher, pool = task.backbone.model, task.teacher[0].model, lambda x: x.mean(1)
    flat, hidden = large.flatten(0, 1), mask.flatten(0, 1)
    x = model.patch_embed(task.backbone.normalize(flat)).flatten(1, -2)
    x = torch.where(hidden[..., None], task.mask_token, x) + model.pos_embed
    tokens = model.norm(model.blocks(x))
    seen = torch.cat(
        [
            pool(tokens).unflatten(0, (4, 2)),
            pool(model.forward_features(task.backbone.normalize(small.flatten(0, 1)))).unflatten(0, (4, 2)),
        ],
        1,
    )
    student = task.head(seen.flatten(0, 1)).unflatten(0, (4, 4))
    student_patches = task.head(tokens[hidden])
    with torch.no_grad():
        tokens = teacher.forward_features(task.backbone.normalize(flat))
        taught = task.teacher[1](pool(tokens)).unflatten(0, (4, 2))
        patches = task.teacher[1](tokens[hidden])
    q, qp = (
        F.softmax((taught - task.centre.value) / 0.04, -1),
        F.softmax((patches - task.patch_centre.value) / 0.04, -1),
    )
    pictures, terms = 0, 0
    for i in range(2):
        for j in range(4):
            if i != j:
                pictures, terms = (
                    pictures + torch.sum(-q[:, i] * F.log_softmax(student[:, j] / 0.1, -1), -1).mean(),
                    terms + 1,
                )
    loss, places = torch.sum(-qp * F.log_softmax(student_patches / 0.1, -1), -1), torch.zeros(8, 16)
    places = places.masked_scatter(hidden, loss).unflatten(0, (4, 2))  # (B, 2, N)
    weight = mask.float()
    patch_loss = ((places * weight).sum(-1) / weight.sum(-1).clamp(min=1.0)).mean()
    return pictures / terms, patch_loss


def test_the_loss_is_the_authors():
    task = _task(patch_weight=0.7)
    task.centre.value.copy_(torch.rand(1, 24) - 0.5), task.patch_centre.value.copy_(torch.rand(1, 24) - 0.5)
    views = _views(task)
    pictures, patches = _authors_loss(task, *views)
    output, theirs = task(views), pictures + 0.7 * patches
    torch.testing.assert_close(output.loss, theirs)
    torch.testing.assert_close(output.logs["patch_loss"], patches.detach())
    parameters = [p for p in task.parameters() if p.requires_grad]
    mine, other = (torch.autograd.grad(loss, parameters) for loss in (output.loss, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_the_loss_of_patches_is_lightlys():
    from_lightly = pytest.importorskip("lightly.loss").IBOTPatchLoss(24)
    task = _task(patch_weight=1.0)
    large, _, mask = views = _views(task)
    flat = mask.flatten(0, 1)
    tokens = task.backbone.tokens(large.flatten(0, 1), mask=flat, mask_token=task.mask_token)
    theirs = from_lightly(task.teach(large.flatten(0, 1), flat)[1], task.head(tokens[flat]), flat.view(8, 4, 4))
    before = task.patch_centre.value.clone()
    torch.testing.assert_close(task(views).logs["patch_loss"], theirs.detach())
    torch.testing.assert_close(task.patch_centre.value, from_lightly.center.value)
    assert not torch.equal(before, task.patch_centre.value) and not torch.equal(
        task.centre.value, task.patch_centre.value
    )


def test_hidden_pixels_change_the_target_and_never_the_students_logits():
    task = _task().eval()
    large, _, mask = _views(task)
    large, mask = large.flatten(0, 1), mask.flatten(0, 1)
    other = torch.where(mask_pixels(mask, 8), torch.rand_like(large), large)
    one, two = (task.backbone.tokens(x, mask=mask, mask_token=task.mask_token) for x in (large, other))
    torch.testing.assert_close(one, two)
    assert (task.teach(large, mask)[1] - task.teach(other, mask)[1]).abs().max() > 1e-3


def test_each_view_hides_as_many_patches_and_views_hide_different_ones():
    _, small, mask = _views(_task(mask_ratio=0.5))
    assert (mask.sum(-1) == 8).all() and not torch.equal(mask[:, 0], mask[:, 1]) and small.shape == (4, 2, 3, 16, 16)


def test_both_centres_stand_still_in_validation_and_take_part_in_no_checkpoint():
    task = _task().eval()
    task(_views(task))
    assert not task.centre.value.any() and not task.patch_centre.value.any()
    assert {name.split(".")[0] for name in task.heads()} == {"head", "mask_token"}


def test_a_class_token_no_small_views_grey_pictures_the_drawing_and_nonsense():
    task = _task(VIT | {"class_token": True, "global_pool": "token"}, small_count=0)
    task(_views(task, 1)).loss.backward()
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)
    assert task.figure({"image": torch.rand(4, 1, 32, 32), "index": torch.arange(4)})["views"].shape[0] == 3
    with pytest.raises(ZooError, match="task.small_size is 16.*dynamic_img_size"):
        _task(VIT | {"dynamic_img_size": False})
    with pytest.raises(ZooError, match="task.teacher_temperature is 0.2"):
        _task(teacher_temperature=0.2)
    with pytest.raises(ZooError, match="task.smallest_crop is 0.01"):
        _task(smallest_crop=0.01)

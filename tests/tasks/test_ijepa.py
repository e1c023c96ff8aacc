"""I-JEPA: nothing of a target reaches the context, masks are of equal counts, and the loss is the authors'."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.masks import mask_pixels
from zoo.tasks.image.ijepa import IJEPA, blocks

VIT = dict(patch_size=8, depth=2, embed_dim=32, num_heads=2, class_token=False, global_pool="avg", fc_norm=False)


def _task(keywords: dict = VIT, size: int = 32, **arguments) -> IJEPA:
    torch.manual_seed(0)
    task = IJEPA(
        create_backbone("vit_tiny_patch16_224", size=size, **keywords),
        **{"predictor_dim": 16, "predictor_heads": 2, **arguments},
    )
    with torch.no_grad():
        for parameter in task.teacher.parameters():
            parameter.mul_(1.2)  # another network than the student
    return task


def _views(task: IJEPA, channels: int = 3) -> tuple:
    image = torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with counted(torch.device("cpu"), 0):
        return task.views({"image": image, "index": torch.arange(4)})


@pytest.mark.parametrize(
    "keywords", [VIT, VIT | {"class_token": True, "global_pool": "token"}], ids=["no prefix", "class token"]
)
def test_the_loss_is_the_authors(keywords):
    """Picture by picture and block by block, where the authors repeat and stack: smooth L1 to the layer-normed tokens
    of the teacher.
    """
    task = _task(keywords)
    image, context, targets = _views(task)
    with torch.no_grad():
        h = task.teacher[0].model.forward_features(task.backbone.normalize(image))[:, -16:]
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    model, losses = task.backbone.model, []
    everything = model._pos_embed(model.patch_embed(task.backbone.normalize(image)))
    prefix, patches = everything[:, :-16], everything[:, -16:]
    for b in range(4):
        seen = model.norm(model.blocks(torch.cat([prefix[b], patches[b, context[b]]])[None]))[:, prefix.shape[1] :]
        for block in targets[b]:
            x = torch.cat(
                [task.embed(seen) + task.position[context[b]], (task.mask_token + task.position[block])[None]], 1
            )
            losses.append(F.smooth_l1_loss(task.predictor(x)[0, -len(block) :], h[b, block]))
    ours, theirs = task((image, context, targets)).loss, torch.stack(losses).mean()
    torch.testing.assert_close(ours, theirs)
    parameters = [p for p in task.parameters() if p.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), rtol=1e-3, atol=1e-6
    )


def test_what_is_left_out_reaches_the_teacher_and_never_the_prediction():
    task = _task().eval()
    image, context, targets = _views(task)
    unseen = torch.ones(4, 16, dtype=torch.bool).scatter(1, context, False)
    assert unseen.gather(1, targets.flatten(1)).all()
    other = torch.where(mask_pixels(unseen, 8), torch.rand_like(image), image)
    torch.testing.assert_close(task.predict(other, context, targets), task.predict(image, context, targets))
    assert (task.target(other, targets) - task.target(image, targets)).abs().max() > 0.01


def test_blocks_are_boxes_of_one_shape_and_contexts_of_one_count():
    torch.manual_seed(0)
    for side, count in ((3, 4), (4, 4), (8, 4), (14, 4), (2, 3), (4, 1)):
        context, targets = blocks(64, side, count, 0.175, 1.5, torch.device("cpu"))
        assert (
            context.shape == (64, side**2 - targets[0].numel())
            and context.shape[1] > 0
            and targets.shape[:2] == (64, count)
        )
        assert not (context[:, :, None] == targets.flatten(1)[:, None]).any(), "a target is in the context"
        assert all(len(set(row)) == len(row) for row in context.tolist())
        rows, columns = targets // side, targets % side
        height, width = rows.amax(2) - rows.amin(2) + 1, columns.amax(2) - columns.amin(2) + 1
        assert (
            (height == height[0, 0]).all()
            and (width == width[0, 0]).all()
            and (height * width == targets.shape[2]).all()
        )
    areas = (
        torch.tensor([float(blocks(1, 14, 4, 0.175, 1.5, torch.device("cpu"))[1].shape[2]) for _ in range(200)]) / 196
    )
    assert abs(areas.mean() - 0.175) < 0.01
    context, targets = blocks(2000, 4, 1, 0.06, 1.0, torch.device("cpu"))
    assert torch.bincount(targets.flatten(), minlength=16).min() > 80, "a place that is never a target"


def test_the_prediction_depends_on_where_the_target_lies():
    task = _task()
    image, context, targets = _views(task)
    moved = (targets + 1) % 16
    assert (task.predict(image, context, moved) - task.predict(image, context, targets)).abs().max() > 1e-3


def test_grey_pictures_the_drawing_and_nonsense():
    task = _task()
    assert task(_views(task, 1)).loss.isfinite()
    assert task.figure({"image": torch.rand(4, 1, 32, 32), "index": torch.arange(4)})["prediction"].shape[0] == 3
    for arguments, sentence in (
        ({"targets": 16}, "task.targets is 16.*16 patches"),
        ({"predictor_dim": 18}, "task.predictor_dim is 18"),
        ({"target_ratio": 0.5}, "task.target_ratio is 0.5"),
    ):
        with pytest.raises(ZooError, match=sentence):
            _task(**arguments)


def test_the_student_pays_for_the_context_alone():
    """Its blocks are given as many tokens as the context has patches, and the predictor those and one block of
    targets.
    """
    task, seen = _task(), {}
    image, context, targets = _views(task)
    task.backbone.model.blocks[0].register_forward_hook(
        lambda module, given, out: seen.update(student=given[0].shape[:2])
    )
    task.predictor[0].register_forward_hook(lambda module, given, out: seen.update(predictor=given[0].shape[:2]))
    task.predict(image, context, targets)
    assert seen["student"] == context.shape and context.shape[1] < 16
    assert seen["predictor"] == (len(image) * targets.shape[1], context.shape[1] + targets.shape[2])

"""DINO: the authors' loss over all pairs of different views, a centre that moves in training alone, and small views of
ViTs.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.losses import view_cross_entropy
from zoo.tasks.image.dino import DINO, entropy

VIT = dict(patch_size=8, depth=1, embed_dim=32, num_heads=2, class_token=False, global_pool="avg", fc_norm=False)


def _task(backbone: str = "test_resnet", keywords: dict | None = None, **arguments) -> DINO:
    torch.manual_seed(0)
    made = create_backbone(backbone, size=32, **({"output_stride": 8} if keywords is None else keywords))
    return DINO(
        made, **{"prototypes": 24, "hidden": 32, "bottleneck": 16, "small_count": 3, "small_size": 16, **arguments}
    )


def _batch(channels: int = 3) -> dict:
    image = torch.randint(0, 256, (6, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"image": image, "index": torch.arange(6)}


def _views(task: DINO, channels: int = 3) -> tuple:
    with counted(torch.device("cpu"), 0):
        return task.views(_batch(channels))


def _outputs(task: DINO, large: torch.Tensor, small: torch.Tensor) -> tuple[list, list]:
    """Logits of the teacher's two views and of the student's five, each (B, K)."""
    views = [*large.unbind(1)], [*small.unbind(1)]
    features = [task.backbone(torch.cat(part)) for part in views]
    student = task.head(torch.cat(features)).chunk(5)
    return list(task.teacher(torch.cat(views[0])).chunk(2)), list(student)


def _authors_loss(teacher: list, student: list, centre: torch.Tensor) -> torch.Tensor:
    """The double loop of DINOLoss in the authors' code."""
    total, terms = 0, 0
    for iq, q in enumerate(F.softmax((t - centre) / 0.04, dim=-1) for t in teacher):
        for v, s in enumerate(student):
            if v != iq:
                total = total + torch.sum(-q * F.log_softmax(s / 0.1, dim=-1), dim=-1).mean()
                terms += 1
    return total / terms


def test_the_loss_is_the_authors():
    task = _task()
    task.centre.value.copy_(torch.rand(1, 24) - 0.5)
    large, small = _views(task)
    assert large.shape == (6, 2, 3, 32, 32) and small.shape == (6, 3, 3, 16, 16)
    teacher, student = _outputs(task, large, small)
    centre = task.centre.value.clone()
    theirs, ours = _authors_loss(teacher, student, centre), task((large, small)).loss
    torch.testing.assert_close(ours, theirs)
    parameters = [p for p in task.parameters() if p.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(task.centre.value, 0.9 * centre + 0.1 * torch.cat(teacher).mean(0, keepdim=True))


def test_the_loss_is_lightlys():
    from_lightly = pytest.importorskip("lightly.loss").DINOLoss(24)
    task = _task(student_temperature=0.1, teacher_temperature=0.04)
    task.centre.value.copy_(torch.rand(1, 24))
    from_lightly.center.copy_(task.centre.value[None])
    teacher, student = torch.randn(6, 2, 24), torch.randn(6, 5, 24, requires_grad=True)
    ours = view_cross_entropy(student, task.centre.sharpened(teacher, 0.04), 0.1)
    theirs = from_lightly(list(teacher.unbind(1)), list(student.unbind(1)), epoch=0)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)))


def test_a_common_shift_of_the_teachers_logits_is_centred_away():
    """Whatever prefers a prototype for all pictures alike; but for the centre, it would be the whole target."""
    task = _task().eval()
    views, shift = _views(task), torch.randn(24)
    before = task(views).loss
    task.teacher.register_forward_hook(lambda module, given, out: out + shift)
    assert (task(views).loss - before).abs() > 0.1
    task.centre.value += shift
    torch.testing.assert_close(task(views).loss, before)


def test_the_centre_stands_still_in_validation_and_takes_part_in_no_checkpoint():
    task = _task().eval()
    task(_views(task))
    assert torch.equal(task.centre.value, torch.zeros(1, 24))
    assert {name.split(".")[0] for name in task.heads()} == {"head"}
    task.train()(_views(task))
    assert task.centre.value.abs().max() > 0


def test_entropy_is_from_one_prototype_to_all():
    torch.testing.assert_close(entropy(torch.eye(4)), torch.zeros(4))
    assert entropy(torch.full((5,), 0.2)).item() == pytest.approx(math.log(5))


def test_small_views_of_a_vit_need_positions_that_adapt():
    with pytest.raises(ZooError, match="task.small_size is 16.*dynamic_img_size"):
        _task("vit_tiny_patch16_224", VIT)
    with pytest.raises(ZooError, match="task.small_size is 12.*patches of 8"):
        _task("vit_tiny_patch16_224", VIT | {"dynamic_img_size": True}, small_size=12)
    task = _task("vit_tiny_patch16_224", VIT | {"dynamic_img_size": True})
    task(_views(task, 1)).loss.backward()
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)
    whole = _task("vit_tiny_patch16_224", VIT, small_size=0)
    assert _views(whole)[1].shape[-1] == 32 and whole(_views(whole)).loss.isfinite()


def test_without_small_views_and_nonsense():
    task = _task(small_count=0)
    assert len(_views(task)) == 1 and task(_views(task)).loss.isfinite()
    assert set(task.eval().figure(_batch(1))) == {"views", "prototypes"}
    with pytest.raises(ZooError, match="task.teacher_temperature is 0.2"):
        _task(teacher_temperature=0.2)
    with pytest.raises(ZooError, match="task.smallest_crop is 0.01"):
        _task(smallest_crop=0.01)

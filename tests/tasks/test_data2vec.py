"""data2vec: the target is the mean of normalised blocks of a teacher that sees everything, and only hidden places are
compared.
"""

from __future__ import annotations

import pytest
import torch

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.masks import mask_pixels
from zoo.tasks.image.data2vec import Data2Vec

VIT = dict(patch_size=8, depth=3, embed_dim=32, num_heads=2, class_token=False, global_pool="avg", fc_norm=False)


def _task(keywords: dict = VIT, **arguments) -> Data2Vec:
    torch.manual_seed(0)
    task = Data2Vec(create_backbone("vit_tiny_patch16_224", size=32, **keywords), **arguments)
    with torch.no_grad():
        for parameter in task.teacher.parameters():
            parameter.mul_(1.2)  # another network than the student
    return task


def _views(task: Data2Vec, channels: int = 3) -> tuple:
    image = torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with counted(torch.device("cpu"), 0):
        return task.views({"image": image, "index": torch.arange(4)})


@pytest.mark.parametrize("loss", ["smooth_l1", "l2"])
@pytest.mark.parametrize(
    "keywords", [VIT, VIT | {"class_token": True, "global_pool": "token"}], ids=["no prefix", "class token"]
)
def test_the_loss_is_the_papers(loss, keywords):
    """Blocks run one by one, what each feed-forward part adds normalised without parameters, the last two averaged; the
    errors of hidden places alone.
    """
    task = _task(keywords, blocks=2, loss=loss, beta=0.5)
    image, mask = _views(task)
    teacher, student = task.teacher[0].model, task.backbone.model
    with torch.no_grad():
        x, outputs = teacher._pos_embed(teacher.patch_embed(task.backbone.normalize(image))), []
        for block in teacher.blocks:
            x = x + block.attn(block.norm1(x))
            added = block.mlp(block.norm2(x))
            x = x + added
            outputs.append(added[:, -16:])
    y = (
        sum(
            (o - o.mean(-1, keepdim=True)) / (o.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            for o in outputs[1:]
        )
        / 2
    )
    x = student.patch_embed(task.backbone.normalize(image))
    x = student._pos_embed(torch.where(mask[..., None], task.mask_token, x))
    guess = task.head(student.norm(student.blocks(x))[:, -16:])
    difference = guess[mask] - y[mask]
    squared = difference.pow(2)
    theirs = (
        squared.mean()
        if loss == "l2"
        else torch.where(difference.abs() <= 0.5, 0.5 * squared / 0.5, difference.abs() - 0.25).mean()
    )
    ours = task((image, mask)).loss
    torch.testing.assert_close(ours, theirs)
    parameters = [p for p in task.parameters() if p.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), rtol=1e-3, atol=1e-6
    )


def test_hidden_pixels_reach_the_teacher_and_never_the_student():
    task = _task().eval()
    image, mask = _views(task)
    other = torch.where(mask_pixels(mask, 8), torch.rand_like(image), image)
    torch.testing.assert_close(task.predict(other, mask), task.predict(image, mask))
    assert (task.target(other) - task.target(image)).abs().max() > 0.01
    assert (task.predict(image, ~mask) - task.predict(image, mask)).abs().max() > 1e-3


def test_the_target_forgets_scale_and_offset_of_a_blocks_features():
    """A token of the target has mean 0; with one block also deviation 1, whatever the weights."""
    image = torch.rand(2, 3, 32, 32)
    task = _task(blocks=1)
    torch.nn.init.normal_(task.teacher[0].model.blocks[-1].mlp.fc2.weight)  # far above the epsilon of the normalisation
    target = task.target(image)
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(-1, unbiased=False), torch.ones(2, 16), atol=1e-2, rtol=0)
    assert _task(blocks=3).target(image).shape == target.shape and not target.requires_grad
    assert _task().blocks == 2 and (_task(blocks=3).target(image) - _task(blocks=2).target(image)).abs().max() > 1e-3


def test_the_teacher_drops_nothing_while_training():
    """Dropped rows of a block would be targets of zeros."""
    task = _task(VIT | {"drop_path_rate": 0.5, "proj_drop_rate": 0.3, "attn_drop_rate": 0.3}, blocks=1)
    image = torch.rand(16, 3, 32, 32)
    fresh = task.target(image)
    first, again = task.train().target(image), task.target(image)
    assert torch.equal(first, again) and torch.equal(first, fresh) and torch.equal(first, task.eval().target(image))
    assert first.abs().amax(2).min() > 0.1
    assert task.train().backbone.model.blocks[-1].drop_path2.training, "the student drops on"


def test_each_picture_hides_as_many_patches():
    image, mask = _views(_task(mask_ratio=0.5))
    assert mask.sum(1).tolist() == [8] * 4 and not torch.equal(mask[0], mask[1])


def test_grey_pictures_the_drawing_and_nonsense():
    task = _task()
    assert task(_views(task, 1)).loss.isfinite()
    assert task.figure({"image": torch.rand(4, 1, 32, 32), "index": torch.arange(4)})["prediction"].shape[0] == 3
    with pytest.raises(ZooError, match="task.blocks is 4.*has 3"):
        _task(blocks=4)
    with pytest.raises(
        ZooError, match="one feed-forward part after their attention, and those of vit_small_patch16_18x2"
    ):
        Data2Vec(create_backbone("vit_small_patch16_18x2_224", size=32, **VIT))
    with pytest.raises(ZooError, match="encode a part of its patches"):
        Data2Vec(create_backbone("test_resnet", size=32))

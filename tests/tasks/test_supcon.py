"""SupCon: the paper's sum over anchors and positives, SimCLR where no two pictures share a label, and labels that are
declared.
"""

from __future__ import annotations

import math

import pytest
import torch

from zoo.backbones import create_backbone
from zoo.errors import ZooError
from zoo.losses import nt_xent
from zoo.tasks.image.supcon import SupCon, supervised_contrast


def _pair(rows: int = 6, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    pair = torch.randn(2, rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return pair[0].clone().requires_grad_(), pair[1].clone().requires_grad_()


def _by_the_paper(first: torch.Tensor, second: torch.Tensor, label: list[int], temperature: float) -> torch.Tensor:
    """Equation 2, sum by sum."""
    z = [row / row.norm() for row in (*first, *second)]
    y, loss = label * 2, 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        below = sum(torch.exp(z[i] @ z[a] / temperature) for a in others)
        positives = [p for p in others if y[p] == y[i]]
        loss = loss - sum(torch.log(torch.exp(z[i] @ z[p] / temperature) / below) for p in positives) / len(positives)
    return loss / len(z)


def test_the_loss_and_its_gradient_are_the_papers():
    first, second = _pair()
    label = [0, 2, 0, 1, 2, 0]
    ours, theirs = (
        supervised_contrast(first, second, torch.tensor(label), 0.3),
        _by_the_paper(first, second, label, 0.3),
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, (first, second)), torch.autograd.grad(theirs, (first, second)))


def test_with_a_label_for_each_picture_it_is_simclr():
    first, second = _pair()
    torch.testing.assert_close(
        supervised_contrast(first, second, torch.arange(6) * 3, 0.2), nt_xent(first, second, 0.2)
    )


def test_only_which_labels_are_equal_matters_and_order_doesnt():
    first, second = _pair()
    label = torch.tensor([0, 2, 0, 1, 2, 0])
    before = supervised_contrast(first, second, label, 0.3)
    torch.testing.assert_close(supervised_contrast(first, second, torch.tensor([7, 5, 7, 9, 5, 7]), 0.3), before)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(supervised_contrast(first[order], second[order], label[order], 0.3), before)
    torch.testing.assert_close(supervised_contrast(second, first, label, 0.3), before)
    assert not torch.isclose(supervised_contrast(first, second, label.flip(0) % 2, 0.3), before)


def test_classes_on_single_points_far_apart_are_as_good_as_it_gets():
    """With all of a class on one point and classes opposite, each anchor shares its probability among its positives
    alone.
    """
    label = torch.tensor([0, 0, 1, 1])
    z = torch.nn.functional.one_hot(label, 2).double() * 2 - 1
    loss = supervised_contrast(z, z, label, 0.05)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-9)


def test_one_class_alone_is_finite():
    first, second = _pair(2)
    loss = supervised_contrast(first, second, torch.zeros(2, dtype=torch.long), 1e-3)
    assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, (first, second)))


def test_it_uses_labels_and_says_so():
    torch.manual_seed(0)
    task = SupCon(create_backbone("test_resnet", size=28), hidden=16, outputs=8)
    assert task.uses_labels
    batch = {
        "image": torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8),
        "label": torch.tensor([0, 1, 1, 0, 2, 2]),
    }
    first, second, label = task.views(batch)
    z = task.projector(task.backbone(torch.cat([first, second])))
    torch.testing.assert_close(
        task((first, second, label)).loss, supervised_contrast(*z.chunk(2), batch["label"], task.temperature)
    )
    assert task((first, second, label)).loss != task((first, second, label.flip(0) % 2)).loss and not torch.equal(
        first, second
    )
    assert task.eval().figure(batch)["nearest"].shape[0] == 3
    with pytest.raises(ZooError, match="the label -1, which is no class"):
        task.views(batch | {"label": torch.tensor([0, 1, -1, 0, 2, 2])})

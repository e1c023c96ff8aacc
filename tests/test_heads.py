"""Teachers follow, queues remember in order, centres are running means, prototypes are directions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.errors import ZooError
from zoo.heads import Centre, Prototypes, Queue, Teacher, check_temperatures, mlp, picture_decoder, prototype_head
from zoo.optim import cosine


def test_a_teacher_follows_its_student_and_takes_no_gradient():
    torch.manual_seed(0)
    body, head = nn.Linear(3, 4), mlp(4, 8, 2)
    teacher = Teacher(body, head)
    x = torch.randn(5, 3)
    assert torch.equal(teacher(x), head(body(x))) and not teacher(x).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    before = teacher[0].weight.clone()
    with torch.no_grad():
        body.weight.add_(1.0)
    assert torch.equal(teacher[0].weight, before), "the teacher shares its student's memory"
    teacher.follow(body, head, momentum=0.75)
    torch.testing.assert_close(teacher[0].weight, before + 0.25)
    teacher.follow(body, head, momentum=0.0)
    assert torch.equal(teacher[0].weight, body.weight)


def test_a_teacher_drops_nothing_and_its_batch_norms_follow_the_task():
    teacher = Teacher(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(0.5), nn.BatchNorm2d(8)))
    x, (conv, drop, norm) = torch.randn(4, 3, 5, 5), teacher[0]
    for _ in range(2):  # as made, and told to train
        assert torch.equal(teacher(x), teacher(x)) and norm.training and conv.training and not drop.training
        nn.ModuleList([teacher]).train()
    assert norm.num_batches_tracked == 4
    nn.ModuleList([teacher]).eval()
    assert not any(layer.training for layer in teacher.modules())


def test_a_queue_holds_the_last_rows_in_turn():
    queue = Queue(5, 2)
    rows = torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, -1.0]])
    before = queue.read()
    torch.testing.assert_close(before.norm(dim=1), torch.ones(5))
    queue.push(rows)
    torch.testing.assert_close(queue.read()[:3], rows.sign())
    torch.testing.assert_close(queue.read()[3:], before[3:])
    queue.push(rows)
    torch.testing.assert_close(queue.read(), rows.sign()[[2, 1, 2, 0, 1]])
    assert torch.equal(before, before.clone()) and int(queue.place) == 1
    queue.eval()
    queue.push(-rows)
    torch.testing.assert_close(queue.read(), rows.sign()[[2, 1, 2, 0, 1]])
    queue.train().push(torch.eye(2).repeat(4, 1))  # more than it holds: the last of them
    assert sorted(map(tuple, queue.read().tolist())) == sorted(map(tuple, torch.eye(2).repeat(4, 1)[-5:].tolist()))


def test_a_centre_is_a_running_mean_while_training():
    centre = Centre(2, momentum=0.9)
    centre.update(torch.tensor([[1.0, 0.0], [3.0, 10.0]]))
    torch.testing.assert_close(centre.value, torch.tensor([[0.2, 0.5]]))
    centre.eval()
    centre.update(torch.ones(2, 2))
    torch.testing.assert_close(centre.value, torch.tensor([[0.2, 0.5]]))


def test_a_shift_that_all_rows_share_passes_no_centre():
    """What is said of every picture alike tells nothing: once it is in the centre, the distributions are as before."""
    centre, logits, shift = Centre(24), torch.randn(6, 2, 24), 3 * torch.randn(24)
    before = centre.sharpened(logits, 0.1)
    torch.testing.assert_close(before, (logits / 0.1).softmax(-1))
    assert (centre.sharpened(logits + shift, 0.1) - before).abs().max() > 0.1
    centre.value.add_(shift)
    torch.testing.assert_close(centre.sharpened(logits + shift, 0.1), before)
    with torch.autocast("cpu", torch.bfloat16):
        assert centre.sharpened(logits.bfloat16(), 0.1).dtype == torch.float32


def test_a_teacher_is_at_least_as_sharp_as_its_student():
    check_temperatures(student=0.1, teacher=0.1)
    with pytest.raises(ZooError, match="task.teacher_temperature is 0.2;.*task.student_temperature, which is 0.1"):
        check_temperatures(student=0.1, teacher=0.2)


def test_a_head_of_prototypes_gives_cosines_of_its_projection():
    head = prototype_head(12, 16, 8, 5).eval()
    x = torch.randn(7, 12)
    torch.testing.assert_close(head(x), torch.cosine_similarity(head[0](x)[:, None], head[1].weight[None], dim=-1))
    assert [layer.out_features for layer in head[0] if isinstance(layer, nn.Linear)] == [16, 16, 8]


def test_prototypes_give_cosines():
    head = Prototypes(4, 6)
    x = torch.randn(3, 4)
    torch.testing.assert_close(head(x), torch.cosine_similarity(x[:, None], head.weight[None], dim=-1))
    exact = head(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x), exact)
    with torch.no_grad():
        head.weight.mul_(3.0)
    torch.testing.assert_close(head(7 * x), torch.cosine_similarity(x[:, None], head.weight[None], dim=-1))


def test_a_cosine_goes_from_start_to_end_exactly():
    assert cosine(0.99, 1.0, 0.0) == 0.99 and cosine(0.99, 1.0, 1.0) == 1.0
    assert abs(cosine(0.0, 1.0, 0.5) - 0.5) < 1e-12 and cosine(0.9, 1.0, 0.3) < cosine(0.9, 1.0, 0.4)


def test_a_transformer_decoder_of_odd_width_is_refused():
    with pytest.raises(ZooError, match="task.width is 7; it has to be even where the decoder is a transformer"):
        picture_decoder("transformer", 8, 3, 16, width=7)
    for kind, width in (("transformer", 6), ("conv", 7), ("linear", 7)):
        assert picture_decoder(kind, 8, 3, 16, width)(torch.randn(2, 8)).shape == (2, 3, 16, 16)

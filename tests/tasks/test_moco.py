"""MoCo: the losses of both versions as the authors write them, keys that enter the queue after it was read, and a batch
that is global.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.tasks.image.moco import MoCo, contrast


def _task(**arguments) -> MoCo:
    torch.manual_seed(0)
    return MoCo(
        create_backbone("test_resnet", size=32, output_stride=8), hidden=32, outputs=16, **{"queue": 24, **arguments}
    )


def _views(task: MoCo) -> tuple:
    image = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with counted(torch.device("cpu"), 0):
        return task.views({"image": image, "index": torch.arange(8)})


def _same_gradient(task: MoCo, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs)
    parameters = [p for p in task.parameters() if p.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), rtol=1e-4, atol=1e-6
    )


def test_version_2_is_algorithm_1_of_the_paper():
    task = _task(temperature=0.1)
    first, second = _views(task)
    queue = task.queue.read()
    q, k = F.normalize(task.projector(task.backbone(first))), F.normalize(task.teacher(second))
    l_pos, l_neg = torch.einsum("nc,nc->n", q, k).unsqueeze(-1), torch.einsum("nc,ck->nk", q, queue.T)
    theirs = F.cross_entropy(torch.cat([l_pos, l_neg], 1) / 0.1, torch.zeros(8, dtype=torch.long))
    _same_gradient(task, task((first, second)).loss, theirs)
    torch.testing.assert_close(task.queue.read()[:8], k)
    torch.testing.assert_close(task.queue.read()[8:], queue[8:])


def test_version_2_is_lightlys():
    from_lightly = pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.2, memory_bank_size=(24, 16))
    task = _task()
    first, second = _views(task)
    query, key = task.projector(task.backbone(first)), task.teacher(second)
    from_lightly(query, key)  # the first call fills the bank
    from_lightly.memory_bank.bank = task.queue.read()
    _same_gradient(task, task((first, second)).loss, from_lightly(query, key))


def test_version_3_is_algorithm_1_of_the_paper():
    task = _task(version="v3", temperature=0.3)
    first, second = _views(task)

    def ctr(q, k):
        logits = F.normalize(q) @ F.normalize(k).T
        return 2 * 0.3 * F.cross_entropy(logits / 0.3, torch.arange(8))

    q1, q2 = (task.predictor(task.projector(task.backbone(view))) for view in (first, second))
    k1, k2 = task.teacher(first), task.teacher(second)
    output = task((first, second))
    _same_gradient(task, output.loss, ctr(q1, k2) + ctr(q2, k1))
    assert task.training_only == ("teacher",) and not any(name.startswith("queue") for name in task.state_dict())
    torch.testing.assert_close(task((second, first)).loss, output.loss)


def test_the_negatives_of_version_3_are_of_the_global_batch(monkeypatch):
    query, key = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    whole = contrast(query, key, 0.2)
    monkeypatch.setattr("zoo.tasks.image.moco.gather", lambda x: F.normalize(key))
    parts = [contrast(query[rank::2], key[rank::2], 0.2) for rank in (0, 1)]
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_a_queue_stays_as_it_is_in_validation():
    task = _task().eval()
    before = task.queue.read()
    task(_views(task))
    assert torch.equal(before, task.queue.read())


@pytest.mark.parametrize("version, step", [("v2", 0.1), ("v3", 0.0)])
def test_momentum_is_constant_in_version_2_and_ends_at_one_in_version_3(version, step):
    task = _task(version=version, momentum=0.9)
    before = next(task.teacher.parameters()).clone()
    with torch.no_grad():
        for parameter in (*task.backbone.parameters(), *task.projector.parameters()):
            parameter.add_(1.0)
    task.after_step(1.0)
    torch.testing.assert_close(next(task.teacher.parameters()), before + step, rtol=1e-4, atol=1e-5)


def test_a_queue_of_nothing_is_refused():
    with pytest.raises(ZooError, match="task.queue is 0"):
        _task(queue=0)

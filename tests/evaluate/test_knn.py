from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from zoo.errors import ZooError
from zoo.evaluate import knn as module
from zoo.evaluate.knn import accuracy, choose_k, count_votes, knn, neighbours


def blobs(count: int, size: int, classes: int, seed: int, apart: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping Gaussian classes: features (count, size) float32 and labels (count,)."""
    centres = apart * torch.randn(classes, size, generator=torch.Generator().manual_seed(99))
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (count,), generator=draw)
    return centres[y] + torch.randn(count, size, generator=draw), y


def nearest_by_hand(bank: torch.Tensor, x: torch.Tensor, k: int, metric: str) -> torch.Tensor:
    """Rows of the k nearest, one query at a time, of equally near ones the first. Equal rows have equal distances by
    construction.
    """
    if metric == "cosine":
        bank, x = (torch.nn.functional.normalize(side.double(), dim=1) for side in (bank, x))
        near = torch.stack([(bank * query).sum(1) for query in x])
    else:
        near = torch.stack([-(bank.double() - query.double()).square().sum(1) for query in x])
    return near.argsort(dim=1, descending=True, stable=True)[:, :k]


# ---- equal to scikit-learn -----------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 7, 20, 300])
def test_majority_of_the_nearest_equals_scikit_learn(k):
    (bank, y), (x, _) = blobs(300, 24, 6, 0), blobs(100, 24, 6, 1)
    theirs = KNeighborsClassifier(k).fit(bank.double().numpy(), y.numpy()).predict(x.double().numpy())
    assert knn(bank, y, x, k, metric="euclidean", vote="majority").tolist() == theirs.tolist()
    theirs = KNeighborsClassifier(k, metric="cosine").fit(bank.double().numpy(), y.numpy()).predict(x.double().numpy())
    assert knn(bank, y, x, k, vote="majority").tolist() == theirs.tolist()


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_weighted_vote_equals_scikit_learn(temperature):
    (bank, y), (x, truth) = blobs(400, 16, 8, 0, apart=0.7), blobs(200, 16, 8, 1, apart=0.7)
    found = {}
    for k in (1, 5, 20, 400):
        model = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / temperature)
        )
        found[k] = knn(bank, y, x, k, temperature=temperature)
        assert found[k].tolist() == model.fit(bank.double().numpy(), y.numpy()).predict(x.double().numpy()).tolist()
    plain = knn(bank, y, x, 20, vote="majority")
    assert not torch.equal(plain, found[20]) and not torch.equal(found[1], found[20])  # the vote and k matter here
    assert accuracy(found[20], truth) > 40


def test_few_classes_many_dimensions_and_float64_too():
    (bank, y), (x, _) = blobs(50, 300, 2, 0, apart=0.2), blobs(40, 300, 2, 1, apart=0.2)
    for dtype in (torch.float32, torch.float64):
        found = knn(bank.to(dtype), y, x.to(dtype), 5, metric="euclidean", vote="majority")
        assert (
            found.tolist()
            == KNeighborsClassifier(5).fit(bank.double().numpy(), y.numpy()).predict(x.double().numpy()).tolist()
        )


# ---- ties ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("count", "size", "offset"), [(37, 3, 0.0), (100, 64, 100.0), (1003, 129, 0.0), (1501, 37, 100.0)]
)
def test_of_equal_images_the_first_is_nearer(metric, count, size, offset):
    draw = torch.Generator().manual_seed(0)
    five = torch.randn(5, size, generator=draw) + offset
    bank, x = five[torch.arange(count) % 5], torch.cat([five, torch.randn(6, size, generator=draw) + offset])
    for k in (1, 5, count // 3, count):
        score, index = neighbours(bank, x, k, metric)
        assert torch.equal(index, nearest_by_hand(bank, x, k, metric))
        assert (score[:, :-1] >= score[:, 1:]).all()


def test_a_lattice_full_of_ties_equals_exact_integers():
    draw = torch.Generator().manual_seed(0)
    bank, x = (torch.randint(0, 3, (count, 4), generator=draw) for count in (700, 60))
    y = bank.sum(1) % 3  # equal images have equal labels, so which of them are taken doesn't matter
    distance = (bank[None] - x[:, None]).square().sum(-1)
    for k in (1, 3, 40, 700):
        index = distance.argsort(dim=1, stable=True)[:, :k]
        found = knn(bank.float(), y, x.float(), k, metric="euclidean", vote="majority")
        votes = torch.nn.functional.one_hot(y[index], 3).sum(1)
        assert torch.equal(neighbours(bank.float(), x.float(), k, "euclidean")[1], index)
        assert torch.equal(found, votes.argmax(1))
        clear = (distance <= distance.gather(1, index[:, -1:])).sum(
            1
        ) == k  # no tie at the k-th place: scikit-learn agrees
        theirs = KNeighborsClassifier(k, algorithm="brute").fit(bank.numpy(), y.numpy()).predict(x.numpy())
        assert found[clear].tolist() == theirs[clear.numpy()].tolist() and (k != 700 or clear.all())


def test_of_equal_votes_the_smaller_label_wins():
    bank, y = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]]), torch.tensor([2, 1, 0])
    assert knn(bank, y, torch.tensor([[1.0, 0.0]]), 2).tolist() == [1]
    assert knn(bank, y, torch.tensor([[1.0, 0.0]]), 2, metric="euclidean", vote="majority").tolist() == [1]


def test_zeros_and_lengths():
    bank = torch.tensor([[0.0, 0.0], [1e-20, 0.0], [0.0, 1e18]])
    score, index = neighbours(bank, torch.tensor([[3.0, 0.0], [0.0, 0.0]]), 3)
    assert index.tolist() == [[1, 0, 2], [0, 1, 2]]  # zeros are as near as what is at right angles
    assert score[0].tolist() == pytest.approx([1, 0, 0]) and score[1].tolist() == [0, 0, 0]


# ---- the search in float64 -----------------------------------------------------------------------


def hardly_apart(count: int, size: int) -> torch.Tensor:
    """Images that differ by less than float32 products of them can tell."""
    draw = torch.Generator().manual_seed(0)
    return torch.ones(size) + 3e-7 * torch.randint(-8, 9, (count, size), generator=draw)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_near_equals_are_told_apart_in_float64(metric, monkeypatch):
    bank = torch.cat([hardly_apart(400, 32), torch.randn(200, 32, generator=torch.Generator().manual_seed(1))])
    x, calls = bank[:20], []
    surely = module._Search.surely
    monkeypatch.setattr(
        module._Search, "surely", lambda self, part, *rest: calls.append(len(part)) or surely(self, part, *rest)
    )
    score, index = neighbours(bank, x, 15, metric)
    assert sum(calls) == 20 and index[:, 0].tolist() == list(range(20))
    # the k nearest, though perhaps another one of those within the last digit
    exact = nearest_by_hand(bank, x, 16, metric)
    unit = torch.nn.functional.normalize(bank.double(), dim=1)
    near = (
        unit[:20] @ unit.T
        if metric == "cosine"
        else -(torch.cdist(x.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2)
    )
    torch.testing.assert_close(near.gather(1, index), near.gather(1, exact[:, :15]), atol=2e-12, rtol=0)
    torch.testing.assert_close(score, near.gather(1, index), atol=2e-12, rtol=1e-9)


def test_what_float32_can_tell_is_not_searched_twice(monkeypatch):
    monkeypatch.setattr(module._Search, "surely", None)
    (bank, _), (x, _) = blobs(500, 16, 4, 0), blobs(50, 16, 4, 1)
    for metric in ("cosine", "euclidean"):
        assert torch.equal(neighbours(bank, x, 10, metric)[1], nearest_by_hand(bank, x, 10, metric))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_block_size_does_not_matter(metric):
    (bank, _), (x, _) = blobs(301, 16, 4, 0), blobs(53, 16, 4, 1)
    bank = torch.cat([bank, bank[:40], hardly_apart(60, 16)])
    x = torch.cat([x, bank[:7], hardly_apart(5, 16)])
    whole = neighbours(bank, x, 12, metric)
    for block in (1, 401, 401 * 9 + 3):
        score, index = neighbours(bank, x, 12, metric, block=block)
        assert torch.equal(score, whole[0]) and torch.equal(index, whole[1])


# ---- choosing k ----------------------------------------------------------------------------------


def test_k_is_what_validation_says():
    (bank, y), (x, truth) = blobs(300, 8, 5, 0, apart=0.5), blobs(200, 8, 5, 1, apart=0.5)
    best, right = choose_k(bank, y, x, truth, 5)
    assert right == {k: accuracy(knn(bank, y, x, k, 5), truth) for k in (1, 5, 10, 20, 50)}
    assert best == max(right, key=right.get) and right[best] > min(right.values())
    # labels of which only the nearest image knows the truth, and such of which it never does
    alone, _ = choose_k(x, truth, x, truth, 5, among=(1, 50))
    noisy = torch.where(
        torch.arange(300) % 3 == 0, torch.randint(0, 5, (300,), generator=torch.Generator().manual_seed(3)), y
    )
    many, _ = choose_k(bank, noisy, x, truth, 5, among=(1, 50))
    assert (alone, many) == (1, 50)


def test_k_that_are_too_large_are_left_out_and_the_smallest_of_equals_is_taken():
    bank, y = torch.eye(7), torch.arange(7)
    assert choose_k(bank, y, bank, y) == (1, {1: 100.0, 5: 100.0})
    assert choose_k(bank[:3], y[:3], bank[:3], y[:3], among=(5, 9)) == (3, {3: 100.0})


# ---- refusals ------------------------------------------------------------------------------------

BANK, LABELS = torch.eye(4), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: knn(BANK, LABELS, BANK, 0), "k is 0 and there are 4 training features; choose k from 1 to 4"),
        (lambda: knn(BANK, LABELS, BANK, 5), "choose k from 1 to 4"),
        (lambda: knn(BANK, LABELS, BANK, True), "choose k from 1 to 4"),
        (lambda: knn(BANK, LABELS, BANK, 2.0), "choose k from 1 to 4"),
        (lambda: knn(BANK, LABELS, BANK[:, :3], 1), "4 numbers per image and the others 3"),
        (lambda: knn(BANK, LABELS[:3], BANK, 1), "one label per feature is needed"),
        (lambda: knn(BANK, LABELS - 1, BANK, 1), "labels run from -1 to 0; they have to lie in 0..0"),
        (lambda: knn(BANK, LABELS, BANK, 1, classes=1), "labels run from 0 to 1; they have to lie in 0..0"),
        (lambda: knn(BANK / 0, LABELS, BANK, 1), "the training features hold NaN or infinity in 4 of 4 rows"),
        (lambda: knn(BANK, LABELS, BANK * float("inf"), 1), "the features hold NaN or infinity in 4 of 4 rows"),
        (lambda: knn(BANK, LABELS, BANK[0], 1), "they have to be a matrix"),
        (
            lambda: knn(BANK, LABELS, BANK, 1, metric="manhattan", vote="majority"),
            "the metric 'manhattan' is unknown; known: cosine, euclidean",
        ),
        (
            lambda: knn(BANK, LABELS, BANK, 1, metric="euclidean"),
            "the vote 'weighted' doesn't go with the metric 'euclidean'",
        ),
        (lambda: knn(BANK, LABELS, BANK, 1, vote="loud"), "the vote 'loud' doesn't go with the metric 'cosine'"),
        (lambda: knn(BANK, LABELS, BANK, 1, temperature=0.0), "the temperature is 0.0; it has to be above 0"),
        (
            lambda: choose_k(BANK, LABELS + 3, BANK, LABELS, classes=4),
            "labels run from 3 to 4; they have to lie in 0..3",
        ),
    ],
)
def test_what_can_not_be_answered_is_refused_in_a_sentence(call, says):
    with pytest.raises(ZooError) as caught:
        call()
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_votes_do_not_overflow():
    score, labels = torch.tensor([[1.0, 0.999, 0.999]]), torch.tensor([[1, 0, 0]])
    assert count_votes(score, labels, temperature=1e-6).tolist() == [1]  # exp(1 / 1e-6) is infinite in any float
    assert count_votes(score, labels, temperature=1.0).tolist() == [0]

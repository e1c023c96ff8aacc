from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import zoo
from zoo.data.datasets import data_info
from zoo.data.generated import generate
from zoo.data.module import ZooData
from zoo.data.named.catalogue import ENTRIES
from zoo.errors import ZooError
from zoo.evaluate.banks import extract
from zoo.evaluate.baselines import raw_pixels
from zoo.evaluate.labels import SPLITS, choose_labelled, labels_of, require_amount, require_labels
from zoo.views import to_float


@pytest.fixture(scope="module")
def digits():
    return zoo.create_data("digits")


@pytest.fixture
def task():
    torch.manual_seed(0)
    task = zoo.create_task("simclr", zoo.create_backbone("test_resnet", size=8), hidden=16, outputs=8)
    task.backbone(torch.rand(64, 1, 8, 8))  # BatchNorm's averages are no longer as made, so the mode matters
    return task


def images(data: ZooData, split: str) -> torch.Tensor:
    return data.dataset.fields["image"][data.dataset.splits[split]]


# ---- extract -------------------------------------------------------------------------------------


def test_features_are_those_of_a_plain_forward(task, digits):
    bank = extract(task.train(), digits)["backbone"]
    task.eval()
    for split in SPLITS:
        with torch.no_grad():
            plain = torch.cat([task.backbone.pool(part.float() / 255) for part in images(digits, split).split(512)])
        assert bank.x[split].dtype == torch.float32 and torch.equal(bank.x[split], plain)
        assert torch.equal(bank.y[split], digits.dataset.fields["label"][digits.dataset.splits[split]])
    assert set(extract(task, digits, ("test",))["backbone"].x) == {"test"}


def test_every_representation_of_the_task_is_there(task, digits, monkeypatch):
    monkeypatch.setattr(
        type(task),
        "features",
        lambda self, image: {"backbone": image.mean((1, 2, 3))[:, None], "half": image[..., 0].flatten(1).half()},
    )
    found = extract(task, digits, ("validation",))
    assert {name: bank.x["validation"].shape[1] for name, bank in found.items()} == {"backbone": 1, "half": 8}
    assert found["half"].x["validation"].dtype == torch.float32


def test_nothing_of_the_task_is_left_changed(task, digits, monkeypatch):
    task.train()
    task.backbone.model.layer1.eval()  # as a task may keep a part of itself
    plain = type(task).features
    monkeypatch.setattr(
        type(task),
        "features",
        lambda self, image: {key: x + 0 * torch.rand(1) for key, x in plain(self, image).items()},
    )
    modes = {name: module.training for name, module in task.named_modules()}
    assert set(modes.values()) == {True, False}
    state = {key: value.clone() for key, value in task.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = extract(task, digits, ("validation",))["backbone"].x["validation"]
    assert torch.equal(torch.rand(3), expected)  # the generator is where it was, though the features drew from it
    assert {name: module.training for name, module in task.named_modules()} == modes
    assert torch.is_grad_enabled() and not first.requires_grad and all(p.grad is None for p in task.parameters())
    assert all(torch.equal(value, state[key]) for key, value in task.state_dict().items())
    monkeypatch.setattr(type(task), "features", lambda self, image: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        extract(task, digits)
    assert {name: module.training for name, module in task.named_modules()} == modes and torch.is_grad_enabled()


def test_what_features_draw_is_the_same_each_time(task, digits, monkeypatch):
    monkeypatch.setattr(type(task), "features", lambda self, image: {"backbone": torch.rand(len(image), 2)})
    first, second = (extract(task, digits)["backbone"].x["train"] for _ in range(2))
    assert torch.equal(first, second) and first.std() > 0.1


def test_some_of_the_images(task, digits):
    whole, part = (extract(task, digits, most=most)["backbone"] for most in (None, 100))
    assert (
        {split: len(part.x[split]) for split in SPLITS}
        == {split: len(part.y[split]) for split in SPLITS}
        == dict.fromkeys(SPLITS, 100)
    )
    rows = [int((whole.x["train"] - row).abs().sum(1).argmin()) for row in part.x["train"]]
    assert rows == sorted(set(rows))  # in the set's order, none of them twice
    torch.testing.assert_close(part.x["train"], whole.x["train"][rows])
    assert torch.equal(part.y["train"], whole.y["train"][rows])
    assert torch.equal(part.x["train"], extract(task, digits, most=100)["backbone"].x["train"])
    assert len(extract(task, digits, ("test",), most=10_000)["backbone"].x["test"]) == 269


def test_some_of_the_images_are_of_every_class_though_the_set_is_sorted(task, digits):
    data = digits.dataset
    order = data.fields["label"][data.splits["train"]].argsort(stable=True)  # as a folder's images are
    sorted_by_class = ZooData(replace(data, splits=data.splits | {"train": data.splits["train"][order]}))
    counts = extract(task, sorted_by_class, ("train",), most=300)["backbone"].y["train"].bincount(minlength=10)
    assert counts.min() > 15


def test_labels_are_those_of_the_images_or_none(digits):
    assert (
        labels_of(digits, ("test",))["test"].tolist()
        == digits.dataset.fields["label"][digits.dataset.splits["test"]].tolist()
    )
    without = replace(digits.dataset, fields={"image": digits.dataset.fields["image"]})
    assert labels_of(ZooData(without)) == {}


# ---- raw pixels ----------------------------------------------------------------------------------


def test_raw_pixels_are_the_pictures(digits):
    bank = raw_pixels(digits)
    for split in SPLITS:
        assert torch.equal(bank.x[split], images(digits, split).flatten(1) / 255) and torch.equal(
            bank.y[split], labels_of(digits)[split]
        )


def test_larger_pictures_are_averaged_down():
    data = ZooData(generate(ENTRIES["emoji"].info, size=96, images=24))
    x = raw_pixels(data, ("train",)).x["train"]
    assert x.shape == (12, 3 * 32 * 32) and 0 <= x.min() and x.max() <= 1
    blocks = torch.nn.functional.avg_pool2d(to_float(images(data, "train")), 3).flatten(1)
    assert (x - blocks).abs().mean() < 0.01 < blocks.std()


# ---- which labels may be used --------------------------------------------------------------------

Y = torch.tensor([2] * 40 + [0] * 100 + [3] * 7)[
    torch.randperm(147, generator=torch.Generator().manual_seed(0))
]  # no image of class 1


def per_class(rows: torch.Tensor) -> list[int]:
    return Y[rows].bincount(minlength=4).tolist()


@pytest.mark.parametrize(
    ("amount", "counts"),
    [
        (1.0, [100, 0, 40, 7]),
        (0.5, [50, 0, 20, 4]),
        (0.1, [10, 0, 4, 1]),
        (1e-9, [1, 0, 1, 1]),
        (1, [1, 0, 1, 1]),
        (7, [7, 0, 7, 7]),
    ],
)
def test_a_share_of_each_class_or_so_many_of_each(amount, counts):
    rows = choose_labelled(Y, amount, 0)
    assert per_class(rows) == counts
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.equal(rows, choose_labelled(Y, amount, 0))


def test_other_draws_choose_others():
    for amount in (0.1, 5, 1):
        draws = [tuple(choose_labelled(Y, amount, draw).tolist()) for draw in range(5)]
        assert len(set(draws)) == 5
    assert choose_labelled(Y, 1.0, 0).tolist() == choose_labelled(Y, 1.0, 1).tolist() == list(range(147))
    spoilt = torch.get_rng_state()
    choose_labelled(Y, 0.1, 0)
    assert torch.equal(torch.get_rng_state(), spoilt)


def test_every_image_has_its_chance():
    seen = torch.zeros(147)
    for draw in range(60):
        seen[choose_labelled(Y, 0.3, draw)] += 1
    assert seen.min() >= 5 and seen.max() <= 35


@pytest.mark.parametrize("amount", [0, 0.0, -1, -0.1, 1.5, 5.0, float("nan"), True, "all", None])
def test_what_is_no_amount_is_refused(amount):
    for ask in (lambda: choose_labelled(Y, amount, 0), lambda: require_amount(amount)):
        with pytest.raises(
            ZooError,
            match="is no amount of labels; give a share above 0 and at most 1, such as 0.01, or a whole number per "
            "class",
        ):
            ask()


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(
        ZooError, match="8 labels per class are asked for, and class owl has 7 training images; ask for at most 7"
    ):
        choose_labelled(Y, 8, 0, ("ant", "bee", "cat", "owl"))
    with pytest.raises(ZooError, match="class 3 has 7 training images; ask for at most 7"):
        choose_labelled(Y, 50, 0)


# ---- sets that can't be measured on --------------------------------------------------------------


def test_sets_without_labels_or_splits_are_refused():
    require_labels(data_info("digits"))
    with pytest.raises(ZooError) as caught:
        require_labels(data_info("stl10-unlabeled"))
    assert str(caught.value).startswith(
        "stl10-unlabeled has no labels ("
    ) and "give a folder with a folder per class" in str(caught.value)
    for split in SPLITS:
        for splits in ({**data_info("digits").splits, split: 0}, {other: 9 for other in SPLITS if other != split}):
            with pytest.raises(
                ZooError, match=f"the {split} split of digits is empty, and there is no measuring without it"
            ):
                require_labels(replace(data_info("digits"), splits=splits))

from __future__ import annotations

import itertools
import sys

import pytest
import torch

import zoo
from zoo.backbones import Backbone
from zoo.data.dataset import Dataset
from zoo.data.datasets import DataInfo
from zoo.data.module import ZooData
from zoo.errors import ZooError
from zoo.evaluate import finetune as module
from zoo.evaluate.banks import extract
from zoo.evaluate.finetune import Classifier, FineTuning, finetune, predict
from zoo.evaluate.knn import accuracy
from zoo.evaluate.labels import choose_labelled, labels_of
from zoo.evaluate.linear import Probe, fit_probe

VIT = {
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "class_token": False,
    "global_pool": "avg",
    "fc_norm": False,
}


def a_backbone(name: str = "vit_tiny_patch16_224", size: int = 8) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return zoo.create_backbone(name, size=size, **(VIT if name.startswith("vit") else {})).eval()


def probe_on(backbone: Backbone, data: ZooData, rows: torch.Tensor) -> Probe:
    task = zoo.create_task("simclr", backbone, hidden=8, outputs=4)
    bank = extract(task, data, ("train", "validation"))["backbone"]
    return fit_probe(
        bank.x["train"][rows],
        bank.y["train"][rows],
        bank.x["validation"],
        bank.y["validation"],
        len(data.dataset.info.classes),
    )


@pytest.fixture(scope="module")
def digits():
    data = zoo.create_data("digits")
    backbone = a_backbone()
    rows = choose_labelled(labels_of(data)["train"], 20, 0)
    return data, backbone, rows, probe_on(backbone, data, rows)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def right(model: torch.nn.Module, data: ZooData, split: str = "validation") -> float:
    return accuracy(predict(model, data, split), labels_of(data)[split])


# ---- what it promises ----------------------------------------------------------------------------


@pytest.fixture
def latest(monkeypatch):
    """Every look finds a better state, so that the last one is kept."""
    monkeypatch.setattr(module, "_right", lambda model, data, rising=itertools.count(): next(rising))


def test_the_given_backbone_is_left_as_it_is_and_the_copy_is_trained(digits, latest):
    data, backbone, rows, probe = digits
    before, modes = state(backbone), {name: part.training for name, part in backbone.named_modules()}
    generator = torch.get_rng_state()
    model = finetune(backbone, probe, data, rows, FineTuning(steps=5))
    assert equal(state(backbone), before) and torch.equal(torch.get_rng_state(), generator)
    assert {name: part.training for name, part in backbone.named_modules()} == modes and all(
        p.grad is None for p in backbone.parameters()
    )
    assert not any(part.training for part in model.modules())
    changed = {key for key, value in state(model.backbone).items() if not torch.equal(value, before[key])}
    assert changed == set(before)  # every weight, down to the stem


def test_it_begins_at_the_probe_and_is_never_worse_on_validation(digits):
    data, backbone, rows, probe = digits
    start = Classifier(backbone, probe.weight, probe.bias)
    bank = extract(zoo.create_task("simclr", backbone, hidden=8, outputs=4), data, ("test",))["backbone"]
    assert torch.equal(predict(start, data, "test"), probe.predict(bank.x["test"]))
    spoilt = finetune(
        backbone, probe, data, rows, FineTuning(steps=10, lr=30.0)
    )  # far too fast: every later state is worse
    assert equal(state(spoilt), state(start))
    assert right(spoilt, data) == right(start, data)


def test_by_low_rank_each_linear_layer_gets_a_matrix_of_that_rank_and_nothing_else_is_changed(
    digits, latest, monkeypatch
):
    """And what is measured afterwards is what was trained."""
    data, backbone, rows, probe = digits
    pictures, before, seen = data.dataset.fields["image"][:50].float() / 255, state(backbone), []
    add = module._add_low_rank

    def pooled(net):
        with torch.no_grad():
            return net.eval().pool(pictures)

    def noted(net, rank):
        added = add(net, rank)
        merge = added.merge_and_unload
        added.merge_and_unload = lambda: (seen.append(pooled(net)), merge())
        assert torch.equal(pooled(net), pooled(backbone))  # they begin at nothing
        return added

    monkeypatch.setattr(module, "_add_low_rank", noted)
    generator = torch.get_rng_state()
    model = finetune(backbone, probe, data, rows, FineTuning(steps=6, rank=2, lr=1e-2))
    torch.testing.assert_close(pooled(model.backbone), seen[0], rtol=1e-4, atol=1e-5)
    assert equal(state(backbone), before) and torch.equal(torch.get_rng_state(), generator)
    after = state(model.backbone)
    assert after.keys() == before.keys() and not any("lora" in type(part).__name__.lower() for part in model.modules())
    changed = {key: after[key] - before[key] for key in before if not torch.equal(after[key], before[key])}
    assert set(changed) == {
        f"model.{name}.weight" for name, part in backbone.model.named_modules() if isinstance(part, torch.nn.Linear)
    }
    for name, change in changed.items():
        values = torch.linalg.svdvals(change.double())
        assert values[2] < 1e-5 * values[0] < 1e-3 * values[1], name  # of rank 2, and not less
    assert not torch.equal(model.head.weight, probe.weight.float()) and all(p.requires_grad for p in model.parameters())
    again = finetune(backbone, probe, data, rows, FineTuning(steps=6, rank=2, lr=1e-2))
    assert equal(state(again), state(model))


def test_low_rank_needs_linear_layers_and_peft(digits, monkeypatch):
    data, backbone, rows, probe = digits
    with pytest.raises(
        ZooError, match="test_resnet has no linear layer to add a matrix of low rank to; use --mode finetune"
    ):
        module.low_rank_layers(a_backbone("test_resnet", 16))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ZooError, match=r'not installed: pip install "pretext-zoo\[lora\]"'):
        finetune(backbone, probe, data, rows, FineTuning(steps=1, rank=2))
    with pytest.raises(ZooError, match="rank is 0; it has to be at least 1, or None"):
        FineTuning(rank=0)


def test_the_best_state_that_was_looked_at_is_kept(digits, monkeypatch):
    data, backbone, rows, probe = digits
    looks, scores = [], iter([10.0, 20.0, 50.0, 30.0, 50.0, 40.0])
    monkeypatch.setattr(module, "_right", lambda model, data: looks.append(state(model)) or next(scores))
    model = finetune(backbone, probe, data, rows, FineTuning(steps=10))
    assert len(looks) == 6 and equal(state(model), looks[2]) and not equal(looks[2], looks[4])


def test_the_seed_decides(digits, latest):
    data, backbone, rows, probe = digits
    trained = []
    for seed in (0, 0, 1):
        torch.manual_seed(1234 + len(trained))  # the state of the generators doesn't
        trained.append(state(finetune(backbone, probe, data, rows, FineTuning(steps=3, seed=seed))))
    assert equal(trained[0], trained[1]) and not equal(trained[0], trained[2])


def test_only_the_given_rows_are_learned_from(digits, monkeypatch):
    data, backbone, rows, probe = digits
    taken = []
    crop = module.random_resized_crop
    monkeypatch.setattr(
        module, "random_resized_crop", lambda x, *rest, **more: taken.append(x) or crop(x, *rest, **more)
    )
    finetune(backbone, probe, data, rows[:30], FineTuning(steps=4, batch_size=12))
    allowed = {
        image.numpy().tobytes() for image in data.dataset.fields["image"][data.dataset.splits["train"][rows[:30]]]
    }
    seen = {image.numpy().tobytes() for batch in taken for image in batch}
    assert [len(batch) for batch in taken] == [12] * 4 and seen <= allowed and len(seen) > 20


# ---- rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("test_resnet", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        ("vit_tiny_patch16_224", ["patch_embed", "blocks.0", "blocks.1", "blocks.2"]),
    ],
)
def test_rates_fall_from_layer_to_layer_towards_the_picture(name, order):
    backbone = a_backbone(name)
    model = Classifier(backbone, torch.zeros(3, backbone.num_features), torch.zeros(3))
    groups = module._layers(model, FineTuning(layer_decay=0.5, weight_decay=0.1))
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert scale[id(model.head.weight)] == scale[id(model.head.bias)] == 1.0
    heights = {
        part: {scale[id(p)] for key, p in backbone.model.named_parameters() if key.startswith(f"{part}.")}
        for part in order
    }
    assert [heights[part] for part in order] == [{0.5 ** (len(order) - level)} for level in range(len(order))]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters())) == len(scale)  # each once
    assert {p.ndim > 1: decay[id(p)] for p in model.parameters()} == {True: 0.1, False: 0.0}
    even = module._layers(model, FineTuning(layer_decay=1.0))
    assert {group["lr_scale"] for group in even} == {1.0}


def test_the_optimizer_gets_these_rates(digits, monkeypatch):
    data, backbone, rows, probe = digits
    used = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: used.append([group["lr"] for group in self.param_groups]) or step(self)
    )
    finetune(backbone, probe, data, rows, FineTuning(steps=20, lr=0.2, layer_decay=0.5, batch_size=8))
    rates = torch.tensor(used)
    assert rates.shape[0] == 20
    scales = rates / rates[:, -1:]
    torch.testing.assert_close(scales, scales[:1].expand_as(scales))
    assert (
        float(scales.min()) == 0.5**4 and rates[0, -1] == pytest.approx(0.05) and rates[1, -1] == pytest.approx(0.15)
    )  # warm-up of two steps
    assert rates[2, -1] > 0.19 and rates[-1, -1] < 0.01 and (rates[2:, -1].diff() < 0).all()


def test_steps_by_default(digits, monkeypatch):
    data, backbone, rows, probe = digits
    counts = []
    monkeypatch.setattr(module.nn.functional, "cross_entropy", lambda x, y: counts.append(len(y)) or x.sum() * 0)
    monkeypatch.setattr(module, "random_resized_crop", lambda x, *rest, **more: x[:2].float() / 255)
    monkeypatch.setattr(module, "_right", lambda *_: 0.0)
    finetune(backbone, probe, data, rows, FineTuning(batch_size=1000))
    assert counts == [200] * 300  # all there are in each, and at least 300 steps
    counts.clear()
    finetune(backbone, probe, data, rows, FineTuning(batch_size=3))
    assert counts == [3] * 333  # five passes


# ---- what frozen features can't do ---------------------------------------------------------------


def red_and_blue(count: int = 240, size: int = 8) -> ZooData:
    """Noise that is redder or bluer, and equally bright in both classes."""
    draw = torch.Generator().manual_seed(0)
    label = torch.arange(count) % 2
    red = torch.randint(0, 200, (count, size, size), generator=draw) + 40 * label[:, None, None]
    image = torch.stack([red, torch.randint(0, 256, red.shape, generator=draw), 240 - red], 1).to(torch.uint8)
    rows = torch.arange(count)
    splits = {"train": rows[:120], "validation": rows[120:180], "test": rows[180:]}
    info = DataInfo(
        name="colours",
        fields=("image", "label"),
        channels=3,
        size=size,
        classes=("blue", "red"),
        version="1",
        license="",
        attribution="",
        homepage="",
        splits={split: len(part) for split, part in splits.items()},
        summary="",
    )
    return ZooData(Dataset(info, {"image": image, "label": label}, splits, "colours"))


def test_it_solves_what_frozen_features_can_not():
    data, backbone, rows = red_and_blue(), a_backbone(), torch.arange(120)
    with torch.no_grad():  # colour-blind: every filter looks at the sum of red, green and blue
        filters = backbone.model.patch_embed.proj.weight
        filters.copy_(filters.mean(1, keepdim=True) * backbone.scale)
    probe = probe_on(backbone, data, rows)
    assert right(Classifier(backbone, probe.weight, probe.bias), data, "test") < 75
    model = finetune(backbone, probe, data, rows, FineTuning(steps=80, lr=5e-3, layer_decay=1.0))
    assert right(model, data, "test") > 90


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"layer_decay": 0.0}, "layer_decay is 0.0; it has to be above 0 and at most 1"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1"),
        ({"steps": 0}, "at least one step of one image, not 0 of 128"),
        ({"batch_size": 0}, "not None of 0"),
    ],
)
def test_what_is_no_fine_tuning_is_refused(how, says):
    with pytest.raises(ZooError, match=says):
        FineTuning(**how)

"""Fine-tuning: the whole network and a linear classifier on few or many labels, the lower layers more slowly.

The classifier starts from the linear probe's optimum (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features
and Underperform Out-of-Distribution", https://arxiv.org/abs/2202.10054), learning rates fall from layer to layer
towards the picture (Clark et al. 2020, section 3, https://arxiv.org/abs/2003.10555), and the state that is best on
validation, the start included, is kept.

With a rank only the classifier and, beside every linear layer of the network, a matrix of that rank are trained, and
added to the layer's own at the end (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models",
https://arxiv.org/abs/2106.09685).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.data.module import ZooData
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.evaluate.banks import BATCH
from zoo.evaluate.knn import accuracy
from zoo.evaluate.linear import Probe
from zoo.optim import Optim
from zoo.views import random_resized_crop, to_float

FINETUNE = 4  # first counter of its random numbers
LOOKS = 5  # at the validation split, on the way
LOW_RANK = {"rank": 8, "lr": 3e-3}  # the matrices begin at nothing, and are few


@dataclass(frozen=True)
class FineTuning:
    """How a network is fine-tuned.

    Args:
        steps: optimizer steps; by default five passes over the labelled images, and at least 300.
        batch_size: images per step, at most as many as there are.
        lr: peak learning rate of the classifier.
        layer_decay: factor from each layer to the one below it, above 0 and at most 1; without meaning where there is a
            rank.
        rank: of what is added to each linear layer, at least 1; None trains the whole network.
        weight_decay: for matrices and filters.
        smallest_crop: least share of a picture's area that is shown, 0 to 1.
        flip: chance of a mirrored picture.
        seed: decides order and augmentation.
    """

    steps: int | None = None
    batch_size: int = 128
    lr: float = 1e-3
    layer_decay: float = 0.75
    rank: int | None = None
    weight_decay: float = 0.05
    smallest_crop: float = 0.5
    flip: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise ZooError(f"layer_decay is {self.layer_decay}; it has to be above 0 and at most 1")
        if (self.steps is not None and self.steps < 1) or self.batch_size < 1:
            raise ZooError(f"fine-tuning takes at least one step of one image, not {self.steps} of {self.batch_size}")
        if self.rank is not None and self.rank < 1:
            raise ZooError(f"rank is {self.rank}; it has to be at least 1, or None")


class Classifier(nn.Module):
    """A backbone and one linear layer: images (B, C, H, W) in [0, 1] -> logits (B, K)."""

    def __init__(self, backbone: Backbone, weight: Tensor, bias: Tensor):
        super().__init__()
        self.backbone, self.head = (
            backbone,
            nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0]),
        )  # draws nothing
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone.pool(image))


def finetune(
    backbone: Backbone, probe: Probe, data: ZooData, rows: Tensor, how: FineTuning = FineTuning()
) -> Classifier:
    """A classifier trained from `backbone` (which is left as it is) and a fitted probe on the images `rows` (n,) of the
    train split.

    It is on the device of the backbone, in eval mode, and the best on validation of the states that were looked at.
    Raises ZooError as `low_rank_layers` does, if there is a rank.
    """
    model = Classifier(copy.deepcopy(backbone), probe.weight, probe.bias)
    device = next(backbone.parameters()).device
    model.to(device).requires_grad_(True)
    images, labels = data.dataset.fields["image"], data.dataset.fields["label"]
    where = data.dataset.splits["train"][rows]
    size = min(how.batch_size, len(where))
    steps = how.steps or max(300, 5 * len(where) // size)
    with counted(device, how.seed, FINETUNE, steps):  # what low-rank matrices begin with
        added = None if how.rank is None else _add_low_rank(model.backbone, how.rank)
    optimizer = torch.optim.AdamW(_layers(model, how), fused=True)
    looks, schedule = {round(steps * (look + 1) / LOOKS) for look in range(LOOKS)}, Optim(warmup=0.1)
    best, kept = _right(model, data), copy.deepcopy(model.state_dict())
    for step in range(steps):
        with counted(device, how.seed, FINETUNE, step):
            batch = where[torch.randperm(len(where))[:size]]
            view = random_resized_crop(
                images[batch].to(device), backbone.size, scale=(how.smallest_crop, 1.0), flip=how.flip
            )
            loss = nn.functional.cross_entropy(model.train()(view), labels[batch].to(device))
        for group in optimizer.param_groups:
            group["lr"] = how.lr * group["lr_scale"] * schedule.scale((step + 0.5) / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 in looks and (right := _right(model, data)) > best:
            best, kept = right, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    if added is not None:
        added.merge_and_unload()
    return model.requires_grad_(True).eval()


def low_rank_layers(backbone: Backbone) -> list[str]:
    """The linear layers of a network by name. Raises ZooError where there is none, and without peft, which puts
    matrices beside them.
    """
    linear = [name for name, layer in backbone.model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ZooError(
            f"{backbone.name} has no linear layer to add a matrix of low rank to; use --mode finetune, or a transformer"
        )
    try:
        import peft  # noqa: F401
    except ImportError:
        raise ZooError('lora needs a package that is not installed: pip install "pretext-zoo[lora]"') from None
    return linear


def _add_low_rank(backbone: Backbone, rank: int) -> Any:
    """Freeze a backbone but for matrices of a rank, zero to begin with, beside its linear layers, in place; what comes
    back merges them.
    """
    layers = low_rank_layers(backbone)
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    return LoraModel(backbone.model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers), "default")


def predict(model: nn.Module, data: ZooData, split: str) -> Tensor:
    """Labels (n,) int64 that a classifier gives the images of a split."""
    device = next(model.parameters()).device
    with torch.no_grad():
        found = [
            model.eval()(to_float(batch["image"].to(device))).argmax(1).cpu()
            for batch in data.batches(split, BATCH, ("image",))
        ]
    return torch.cat(found)


def _right(model: nn.Module, data: ZooData) -> float:
    return accuracy(predict(model, data, "validation"), data.dataset.fields["label"][data.dataset.splits["validation"]])


def _layers(model: Classifier, how: FineTuning) -> list[dict]:
    """Parameter groups of timm's layers with their `lr_scale`; the classifier's is 1, the uppermost layer's
    `layer_decay`; one where there is a rank.
    """
    from timm.optim import param_groups_layer_decay

    if how.rank is not None:
        return [
            {
                "params": [p for p in model.parameters() if p.requires_grad],
                "weight_decay": how.weight_decay,
                "lr_scale": 1.0,
            }
        ]
    groups = param_groups_layer_decay(model.backbone.model, how.weight_decay, layer_decay=how.layer_decay)
    for group in groups:
        group["lr_scale"] *= how.layer_decay
    head = [
        {"params": [model.head.weight], "weight_decay": how.weight_decay, "lr_scale": 1.0},
        {"params": [model.head.bias], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    return groups + head

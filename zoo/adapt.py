"""Adapting a checkpoint to labelled pictures: nearest neighbours, a linear probe, or fine-tuning, whole or by low rank.

The outcome is a folder that timm loads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from zoo import card as cards
from zoo.checkpoint.classifier import with_classifier
from zoo.checkpoint.files import CONFIG, FACTS, MODEL, timm_config
from zoo.checkpoint.write import weights
from zoo.data.datasets import data_info
from zoo.data.module import ZooData, create_data
from zoo.errors import ZooError, nearest
from zoo.evaluate.banks import (
    OWN,
    PIXELS,
    RANDOM,
    choose_labelled,
    extract,
    labels_of,
    raw_pixels,
    require_amount,
    require_labels,
)
from zoo.evaluate.finetune import LOW_RANK, Classifier, FineTuning, finetune, low_rank_layers, predict
from zoo.evaluate.knn import accuracy
from zoo.evaluate.table import NETWORKS, finetuned, frozen, probe_of, random_task, tuning_for
from zoo.machine.devices import best_device
from zoo.paths import expanded, explain, successors, sync_folder, write_bytes, write_text
from zoo.tasks.base import PretextTask
from zoo.tasks.load import load_task

MODES = ("knn", "probe", "finetune", "lora")
TUNED = ("finetune", "lora")


@dataclass(frozen=True)
class Adapted:
    """What came of it: accuracy in percent on the test split, and the folder of the classifier (None for knn, which has
    no weights).

    `baselines` says what the same labels give without pretraining: by "random weights" of the same network, adapted
    likewise (the mean of three, but of one that is tuned), and by raw "pixels", which have no network to fine-tune and
    get the linear probe then.
    """

    checkpoint: str
    data: str
    mode: str
    labels: float | int
    images: int  # labelled images that were used
    classes: tuple[str, ...]
    value: float
    baselines: dict[str, float]
    folder: Path | None


def adapt(
    checkpoint: str | Path,
    data: str,
    mode: str = "probe",
    labels: float | int = 1.0,
    per_class: int | None = None,
    out: str | Path | None = None,
    hub: str | Path | None = None,
    seed: int = 0,
    baselines: bool = True,
) -> Adapted:
    """Adapt a checkpoint to a labelled set and measure it on the test split, once, beside random weights and raw
    pixels.

    Args:
        checkpoint: a folder of a checkpoint or run, or a name in the hub.
        data: a set's name, or folder:PATH with a folder per class.
        mode: knn, probe (logistic regression on frozen features), finetune (the whole network, from the probe on) or
            lora (likewise, but only matrices of low rank, which are then added to the linear layers of a transformer;
            needs peft).
        labels: share of the training labels that may be used (a float, above 0 and at most 1), or so many of each class
            (an int), as for `evaluate`.
        per_class: the latter, by another name.
        out: folder of the classifier; one that holds anything is refused. By default
            adapted/<checkpoint>-<data>-<mode>, with -2, -3, ... behind it where that is taken.
        seed: decides which labels, and fine-tuning's order.
        baselines: measure random weights and raw pixels too.

    The folder holds a plain timm model, `timm.create_model("local-dir:FOLDER", pretrained=True)`, whose logits are in
    the order of `classes`; it is this model that was measured. Raises ZooError for unknown names, amounts that aren't
    any, data without labels, and a backbone whose classifier timm doesn't keep as one layer; all of it before anything
    is trained.
    """
    from zoo.hub.hub import find

    if mode not in MODES:
        raise ZooError(f"{mode!r} is no way to adapt{nearest(mode, MODES)}")
    if per_class is not None and (labels != 1.0 or isinstance(labels, int)):
        raise ZooError("labels and per_class are two ways to say how many labels may be used; give one of them")
    if mode == "knn" and out is not None:
        raise ZooError("nearest neighbours leave no classifier to write; leave out --out, or use --mode probe")
    amount = labels if per_class is None else per_class
    require_amount(amount)
    source = find(checkpoint, hub)
    card = cards.read_card(source)
    require_labels(data_info(data))
    out = None if out is None else expanded(out)
    if out is not None and _is_taken(out):
        raise ZooError(f"{out} exists already; remove it, or add --out ANOTHER-FOLDER")
    module = create_data(data, size=card["data"]["size"], **cards.bad_samples_of(card, data))
    task, y, classes = load_task(source).to(best_device()), labels_of(module), module.dataset.info.classes
    rows = choose_labelled(y["train"], amount, seed, classes)
    if mode == "knn":
        value = frozen("knn", extract(task, module)[OWN], rows, len(classes))
    else:
        model = _classifier(mode, task, module, rows, seed)
        value = accuracy(predict(model, module, "test"), y["test"])
    beside = _baselines(mode, card, module, rows, seed) if baselines else {}
    folder = None if mode == "knn" else _free(card["name"], data, mode) if out is None else out
    result = Adapted(card["name"], data, mode, amount, len(rows), classes, round(value, 2), beside, folder)
    if folder is not None:
        _write(folder, model, card, source, result)
    return result


def _baselines(mode: str, card: dict, data: ZooData, rows: Tensor, seed: int) -> dict[str, float]:
    """Percent right on the test split of random weights and of raw pixels, with the labels of the training images
    `rows`.
    """
    protocol, classes = "knn" if mode == "knn" else "linear", len(data.dataset.info.classes)
    values = []
    for draw in range(1 if mode in TUNED else NETWORKS):
        task = random_task(card, draw).to(best_device())
        bank = extract(task, data)[OWN]
        values.append(
            finetuned(task, bank, data, rows, _tuning(mode, task, seed))
            if mode in TUNED
            else frozen(protocol, bank, rows, classes)
        )
    return {
        RANDOM: round(statistics.mean(values), 2),
        PIXELS: round(frozen(protocol, raw_pixels(data), rows, classes), 2),
    }


def _classifier(mode: str, task: PretextTask, data: ZooData, rows: Tensor, seed: int) -> Classifier:
    """The backbone and a linear layer fitted on the training images `rows`, both of them fine-tuned if `mode` says
    so.
    """
    classes = len(data.dataset.info.classes)
    if mode == "lora":
        low_rank_layers(task.backbone)
    with_classifier(
        task.backbone, torch.zeros(classes, task.backbone.num_features), torch.zeros(classes)
    )  # a ZooError now, not at the end
    probe = probe_of(extract(task, data, ("train", "validation"))[OWN], rows, classes)
    if mode in TUNED:
        return finetune(task.backbone, probe, data, rows, _tuning(mode, task, seed))
    return Classifier(task.backbone, probe.weight, probe.bias).to(task.device)


def _tuning(mode: str, task: PretextTask, seed: int) -> FineTuning:
    how = tuning_for(task, seed)
    return replace(how, **LOW_RANK) if mode == "lora" else how


def _is_taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _free(*names: str) -> Path:
    """The usual folder, or the first of its successors that isn't taken: now, since another process may have been
    quicker.
    """
    name = "-".join(word.removeprefix("folder:").rstrip("/").rpartition("/")[2] for word in names)
    usual = Path("adapted") / re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.")
    return next(folder for folder in successors(usual) if not _is_taken(folder))


def _write(folder: Path, model: Classifier, card: dict, source: Path, result: Adapted) -> None:
    """The classifier's folder: into a temporary one beside it, then renamed."""
    state = with_classifier(model.backbone, model.head.weight.detach(), model.head.bias.detach()).state_dict()
    config = timm_config(model.backbone, card["license"])
    config |= {"num_classes": len(result.classes)}
    config["pretrained_cfg"] |= {"num_classes": len(result.classes), "label_names": list(result.classes)}
    facts = {key: value for key, value in asdict(result).items() if key != "folder"}
    facts |= {
        "split": "test",
        "parent": {"name": card["name"], "card_sha256": hashlib.sha256(cards.read_text(source)).hexdigest()},
        "license": card["license"],
        "attribution": card["data"]["attribution"],
        "created": time.strftime("%Y-%m-%d"),
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            write_bytes(fresh / MODEL, weights(state, MODEL))
            write_text(fresh / CONFIG, json.dumps(config, indent=1) + "\n")
            write_text(fresh / FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
            write_text(fresh / cards.README, _readme(result, model.backbone.channels))
            os.chmod(fresh, 0o755)
            os.replace(fresh, folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise explain(error, folder, 4 * sum(tensor.numel() for tensor in state.values())) from error


def _readme(result: Adapted, channels: int) -> str:
    amount = cards.label_amount(result.labels)
    beside = ", ".join(f"{value:.1f} % by {name}" for name, value in result.baselines.items())
    beside = beside and f" From the same ones: {beside}."
    return f"""# {result.checkpoint}, {result.mode} on {result.data}

A classifier of {len(result.classes)} classes, {result.value:.1f} % right on the test split, from {result.images:,} labelled pictures ({amount}).{beside}

```python
import timm, torch
from PIL import Image, ImageOps

model = timm.create_model("local-dir:PATH", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
picture = ImageOps.exif_transpose(Image.open("picture.png")).convert("{"RGB" if channels == 3 else "L"}")
logits = model(transform(picture).unsqueeze(0))
print(model.pretrained_cfg["label_names"][logits.argmax()])
```

It was trained on pictures that lie on white where they are transparent, and whose values, if they have 16 bits, were scaled to 8: Pillow's `convert`
does neither. `{FACTS}` says what it was made from.
"""  # noqa: E501

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
from zoo.errors import ZooError, nearest
from zoo.evaluate.baselines import NETWORKS, RANDOM
from zoo.evaluate.finetune import LOW_RANK, Classifier, FineTuning, finetune, low_rank_layers, predict
from zoo.evaluate.knn import accuracy
from zoo.evaluate.labels import require_amount
from zoo.evaluate.protocols import PROTOCOLS, finetuned, frozen, probe_of, tuning_for
from zoo.evaluate.study import Study
from zoo.paths import expanded, explain, successors, sync_folder, write_bytes, write_text
from zoo.tasks.base import PretextTask

MODES = ("knn", "probe", "finetune", "lora")
TUNED = ("finetune", "lora")
# The protocol that says whether a checkpoint can be adapted. A classifier is a timm model, which reads images.
PROTOCOL = {"knn": "knn", "probe": "finetune", "finetune": "finetune", "lora": "finetune"}


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
    amount = labels if per_class is None else per_class
    if mode not in MODES:
        raise ZooError(f"{mode!r} is no way to adapt{nearest(mode, MODES)}")
    if per_class is not None and (labels != 1.0 or isinstance(labels, int)):
        raise ZooError("labels and per_class are two ways to say how many labels may be used; give one of them")
    if mode == "knn" and out is not None:
        raise ZooError("nearest neighbours leave no classifier to write; leave out --out, or use --mode probe")
    require_amount(amount)
    study = Study(checkpoint, data, hub)
    if (why := PROTOCOLS[PROTOCOL[mode]].refusal(study)) is not None:
        raise ZooError(why)
    out = None if out is None else expanded(out)
    if out is not None and _is_taken(out):
        raise ZooError(f"{out} exists already; remove it, or add --out ANOTHER-FOLDER")
    rows, model = study.choose(amount, seed), None
    if mode == "knn":
        value = frozen("knn", study.own, rows, len(study.classes))
    else:
        model = _classifier(mode, study, rows, seed)
        value = accuracy(predict(model, study.data, "test"), study.labels["test"])
    beside = _baselines(mode, study, rows, seed) if baselines else {}
    name = study.card["name"]
    folder = None if model is None else out or _free(name, data, mode)
    result = Adapted(name, data, mode, amount, len(rows), study.classes, round(value, 2), beside, folder)
    if model is not None:
        _write(model, study, result)
    return result


def _baselines(mode: str, study: Study, rows: Tensor, seed: int) -> dict[str, float]:
    """Percent right on the test split of random weights and of the samples as they are, with the labels of the training
    samples `rows`.
    """
    protocol, classes, values = "knn" if mode == "knn" else "linear", len(study.classes), []
    for draw in range(1 if mode in TUNED else NETWORKS):
        task, bank = study.random_network(draw)
        values.append(
            finetuned(task, bank, study.data, rows, _tuning(mode, task, seed))
            if mode in TUNED
            else frozen(protocol, bank, rows, classes)
        )
    raw = {name: round(frozen(protocol, bank, rows, classes), 2) for name, bank in study.raw.items()}
    return {RANDOM: round(statistics.mean(values), 2)} | raw


def _classifier(mode: str, study: Study, rows: Tensor, seed: int) -> Classifier:
    """The backbone and a linear layer fitted on the training samples `rows`, both of them fine-tuned if `mode` says
    so.
    """
    classes, task = len(study.classes), study.task
    backbone = task.tower[study.first]
    if mode == "lora":
        low_rank_layers(backbone)
    # A classifier that timm doesn't keep as one layer is a ZooError now, not at the end.
    with_classifier(backbone, torch.zeros(classes, backbone.num_features), torch.zeros(classes))
    probe = probe_of(study.own, rows, classes)
    if mode in TUNED:
        return finetune(backbone, probe, study.data, rows, _tuning(mode, task, seed))
    return Classifier(backbone, probe.weight, probe.bias).to(task.device)


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


def _write(model: Classifier, study: Study, result: Adapted) -> None:
    """The classifier's folder: into a temporary one beside it, then renamed."""
    folder, card = result.folder, study.card
    state = with_classifier(model.backbone, model.head.weight.detach(), model.head.bias.detach()).state_dict()
    config = timm_config(model.backbone, card["license"])
    config |= {"num_classes": len(result.classes)}
    config["pretrained_cfg"] |= {"num_classes": len(result.classes), "label_names": list(result.classes)}
    facts = {key: value for key, value in asdict(result).items() if key != "folder"}
    facts |= {
        "split": "test",
        "parent": {"name": card["name"], "card_sha256": hashlib.sha256(cards.read_text(study.folder)).hexdigest()},
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

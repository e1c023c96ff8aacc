"""What every pretext task promises, as one function: for the zoo's own suite, and for authors of other packages.

    def test_contract():
        check_task(MyTask)

It takes a few seconds on one CPU core. Networks are tiny and pictures are generated, so nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import pickle
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo import recipe
from zoo.backbones import Backbone, create_backbone
from zoo.checkpoint.describe import new_card
from zoo.checkpoint.write import export
from zoo.data.generated import generate
from zoo.data.info import DataInfo
from zoo.draws import Draw, counted
from zoo.errors import ZooError
from zoo.grid import is_picture
from zoo.registry import declared_name, find_task
from zoo.tasks.base import PretextTask
from zoo.tasks.load import load_task
from zoo.tasks.output import TaskOutput, kind_of

SIZES, IMAGES, STEPS = (32, 24), 16, 40  # pixels; pictures of the fixed batch; steps in which its loss has to fall
FALL = 0.02  # of the first loss, at least
FIELDS = ("label", "text", "tokens", "audio", "factors")
CPU = torch.device("cpu")
CONV = {"name": "test_resnet", "output_stride": 8}
VIT = {
    "name": "vit_tiny_patch16_224",
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 2,
    "class_token": False,
    "global_pool": "avg",
    "fc_norm": False,
}
OURS = (
    "training_step",
    "validation_step",
    "predict_step",
    "configure_optimizers",
    "optimizer_step",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "train_dataloader",
    "backward",
    "on_train_epoch_start",
    "on_validation_epoch_start",
)


def check_task(task: type[PretextTask] | str, **arguments: Any) -> None:
    """Raises AssertionError, with a sentence naming the broken promise, unless `task` keeps the contract of a pretext
    task.

    Args:
        task: the class, registered by `register_task` or by an entry point; or its name.
        arguments: those of its constructor but the backbone; smaller ones than the defaults make it quicker.

    A convolutional backbone is tried first, and a small ViT if the task refuses that with a ZooError. All random
    generators are left as they were found.
    """
    task = _class_of(task)
    _check_class(task)
    with _as_found(), _fields_needed(task), torch.enable_grad():
        torch.manual_seed(0)
        keywords = _backbone_for(task, arguments)
        made, batch = _make(task, keywords, SIZES[0], arguments), _batch(task, SIZES[0])
        _check_construction(made, arguments)
        _check_views(made, batch)
        _check_loss(made, batch)
        _check_randomness(made, batch)
        _check_state(made, batch)
        _check_gradients(made, batch)
        _check_leaves_as_found(made, batch)
        _check_features(made, batch)
        _check_pictures(made, batch)
        _check_sizes(task, keywords, arguments)
        _check_export(_check_learns(made, batch), batch)


# ---- the class -----------------------------------------------------------------------------------


def _class_of(task: Any) -> Any:
    """The class of a name; a class that only an entry point names is registered by that."""
    name = task if isinstance(task, str) else None
    if isinstance(task, type) and issubclass(task, PretextTask) and not task.name:
        name = declared_name(task)
    try:
        return task if name is None else find_task(name)
    except ZooError as error:
        raise AssertionError(str(error)) from error


def _check_class(task: type) -> None:
    if not (isinstance(task, type) and issubclass(task, PretextTask)):
        raise AssertionError(f"{task!r} is not a class that inherits from zoo.PretextTask")
    who = task.__name__
    _promise(
        bool(task.name), f'{who} has no name; decorate it with @register_task("its-name"), or name it in an entry point'
    )
    _promise(find_task(task.name) is task, f"zoo knows another class under the name {task.name}")
    parents = [base.__name__ for base in task.__mro__[1:] if issubclass(base, PretextTask) and base is not PretextTask]
    _promise(not parents, f"{who} inherits from {' and '.join(parents)}; a task inherits from PretextTask alone")
    docs = f"{task.__doc__ or ''} {sys.modules[task.__module__].__doc__ or ''}"
    _promise(
        re.search(r"https?://\S+\.\S+", docs) is not None,
        f"neither the docstring of {who} nor its module's has a link to where the idea is from",
    )
    taken = [name for name in OURS if name in vars(task)]
    _promise(not taken, f"{who} defines {' and '.join(taken)}; how a task is trained belongs to PretextTask")
    _promise(
        isinstance(task.needs, tuple) and "image" in task.needs,
        f"{who}.needs is {task.needs!r}; it is a tuple of fields, image among them",
    )
    try:
        recipe.check_signature(task)
    except ZooError as error:
        raise AssertionError(str(error)) from error


def _check_construction(task: PretextTask, given: dict) -> None:
    who = type(task).__name__
    signature = inspect.signature(type(task).__init__).parameters
    wanted = {
        key: given.get(key, parameter.default) for key, parameter in list(signature.items())[1:] if key != "backbone"
    }
    _promise(
        task.arguments == wanted,
        f"{who}.arguments is {task.arguments}, not its constructor's; leave that attribute alone",
    )
    _promise(not task.hparams, f"{who} saves hyperparameters; its arguments are kept for it")
    unknown = [name for name in task.training_only if not any(key.split(".")[0] == name for key in task.state_dict())]
    _promise(not unknown, f"{who}.training_only names {unknown}, of which there is no state")


@contextlib.contextmanager
def _as_found() -> Iterator[None]:
    """The generators of Python, NumPy and torch are afterwards as before."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextlib.contextmanager
def _fields_needed(task: type[PretextTask]) -> Iterator[None]:
    """A field that a batch lacks was not asked for."""
    try:
        yield
    except KeyError as error:
        if error.args[0] not in FIELDS:
            raise
        raise AssertionError(
            f"{task.__name__} reads {error} of a batch, which its needs {task.needs} don't name"
        ) from error


# ---- making small ones ---------------------------------------------------------------------------


def _backbone_for(task: type[PretextTask], arguments: dict) -> dict:
    """Keywords of a backbone that the task takes."""
    refusals = []
    for keywords in (CONV, VIT):
        try:
            made = _make(task, keywords, SIZES[0], arguments)
            _run(made, _batch(task, SIZES[0]))
            return keywords
        except ZooError as error:
            refusals.append(f"{keywords['name']}: {error}")
    raise AssertionError(
        f"{task.__name__} can be trained with neither a convolutional backbone nor a ViT: {'; '.join(refusals)}"
    )


def _make(task: type[PretextTask], keywords: dict, size: int, arguments: dict) -> PretextTask:
    keywords = dict(keywords)
    backbone: Backbone = create_backbone(keywords.pop("name"), size=size, **keywords)
    return task(backbone, **arguments).train()


def _batch(task: type[PretextTask], size: int, images: int = IMAGES, channels: int = 3) -> dict:
    """Only the fields that the task says it needs, and `index`."""
    fields = tuple(dict.fromkeys(("image", *task.needs)))
    info = DataInfo(
        name="generated",
        fields=fields,
        channels=channels,
        size=size,
        classes=("a", "b", "c"),
        version="1",
        license="CC0-1.0",
        attribution="nobody",
        homepage="",
        splits={"train": images, "validation": 0, "test": 0},
        summary="coloured blobs",
    )
    batch = {name: values for name, values in generate(info, images=images).fields.items() if name in task.needs}
    return batch | {"index": torch.arange(images)}


def _views(task: PretextTask, batch: dict, *counters: int) -> tuple:
    with torch.no_grad(), counted(CPU, *(counters or (Draw.TRAINING, 0))):
        return task.views(batch)


def _run(task: PretextTask, batch: dict, *counters: int) -> TaskOutput:
    return task(_views(task, batch, *counters))


# ---- promises ------------------------------------------------------------------------------------


def _promise(kept: bool, sentence: str) -> None:
    if not kept:
        raise AssertionError(sentence)


def _no_logging(*given: Any, **also: Any) -> None:
    raise AssertionError("forward logs; what is worth a curve belongs into the logs of its TaskOutput")


def _check_views(task: PretextTask, batch: dict) -> None:
    given = copy.deepcopy(batch)
    views = _views(task, batch)
    _promise(isinstance(views, tuple), f"views gave a {type(views).__name__}; it is a tuple")
    _promise(
        _equal(batch, given), "views writes into the batch that it was given, and thereby into the data; work on a copy"
    )
    for tensor in _tensors(views):
        _promise(
            not tensor.requires_grad,
            "views gave a tensor that carries a gradient; whatever learns belongs into forward",
        )
    _promise(_equal(pickle.loads(pickle.dumps(views)), views), "views gave something that pickling changes")


def _check_loss(task: PretextTask, batch: dict) -> None:
    twin = copy.deepcopy(task)
    for name in ("log", "log_dict"):
        object.__setattr__(twin, name, _no_logging)
    output = _run(twin, batch)
    _promise(isinstance(output, TaskOutput), f"forward gave a {type(output).__name__}; it is a TaskOutput(loss, logs)")
    loss = output.loss
    _promise(
        isinstance(loss, Tensor) and loss.ndim == 0, f"the loss is not a scalar tensor: {getattr(loss, 'shape', loss)}"
    )
    _promise(bool(loss.isfinite()), f"the loss of the first batch is {loss.item()}")
    _promise(loss.requires_grad, "the loss carries no gradient")
    for key, value in output.logs.items():
        _promise(
            isinstance(value, (float, int)) or value.numel() == 1,
            f"logs[{key!r}] is not a scalar; Lightning can't draw a curve of it",
        )
    with torch.autocast("cpu", torch.bfloat16):
        narrow = _run(copy.deepcopy(task), batch).loss
    _promise(
        narrow.dtype == torch.float32 and bool(narrow.isfinite()),
        f"under autocast to bfloat16 the loss is {narrow.dtype} {narrow.item()}; switch autocast off for the loss and "
        "cast to float32 first",
    )


def _check_randomness(task: PretextTask, batch: dict) -> None:
    twins = [copy.deepcopy(task) for _ in range(3)]
    random.seed(1), np.random.seed(1)  # of no consequence, if all randomness follows the counters
    first = _views(twins[0], batch)
    random.seed(2), np.random.seed(2)
    again, other = _views(twins[1], batch), _views(twins[2], batch, Draw.TRAINING, 1)
    _promise(
        _equal(first, again), "views differ though the counters are the same; draw only from torch's default generator"
    )
    _promise(
        _equal(first, _views(twins[0], batch)),
        "views gives something else when it is called again with the same counters; a resumed run would differ",
    )
    labelled = {"label": torch.arange(len(batch["index"])) % 3} | batch
    _promise(
        _equal(first, _views(copy.deepcopy(task), labelled)),
        f"views reads the label where there is one, which its needs {task.needs} don't name",
    )
    losses = []
    for twin, views in zip(twins, (first, again, other), strict=True):
        with counted(CPU, 7):
            before = torch.get_rng_state()
            losses.append(twin(views).loss.item())
            _promise(
                torch.equal(before, torch.get_rng_state()),
                "forward draws random numbers; everything random belongs into views",
            )
    _promise(
        losses[0] == losses[1], f"the loss differs, {losses[0]} and {losses[1]}, though views and weights are the same"
    )
    _promise(_equal(first, other) or losses[0] != losses[2], "the loss doesn't change when the views do")


def _check_state(task: PretextTask, batch: dict) -> None:
    """What a run is resumed from is the state dict alone."""
    used, fresh = copy.deepcopy(task), copy.deepcopy(task)
    for step in range(3):
        with torch.no_grad():
            _run(used, batch, Draw.TRAINING, step)
            used.after_step((step + 1) / 3)
    fresh.load_state_dict(used.state_dict())
    with torch.no_grad():
        here, there = (_run(twin, batch, Draw.TRAINING, 3).loss.item() for twin in (used, fresh))
    _promise(
        here == there,
        f"after three steps the loss is {here}, and {there} for a task that was given its state: a resumed run would "
        "differ; keep what "
        "counts in a buffer, by register_buffer",
    )


def _check_gradients(task: PretextTask, batch: dict) -> None:
    task = copy.deepcopy(task)
    task.zero_grad()
    _run(task, batch).loss.backward()
    for name, parameter in task.named_parameters():
        if name.split(".")[0] in task.training_only:
            _promise(
                parameter.grad is None,
                f"{name} gets a gradient, though {name.split('.')[0]} is a teacher (training_only)",
            )
        elif parameter.requires_grad:
            _promise(
                parameter.grad is not None,
                f"{name} gets no gradient; what never learns hangs distributed training and has no place in a "
                "checkpoint",
            )
            _promise(bool(parameter.grad.isfinite().all()), f"the gradient of {name} isn't finite")
        else:
            _promise(not name.startswith("backbone."), f"{name} can't learn: it doesn't require a gradient")
    size = sum(float(p.grad.abs().sum()) for p in task.backbone.parameters() if p.grad is not None)
    _promise(size > 0, "the gradient of the whole backbone is zero, so it learns nothing")


def _check_leaves_as_found(task: PretextTask, batch: dict) -> None:
    for training in (True, False):
        twin = copy.deepcopy(task).train(training)
        frozen = {name: module.training for name, module in copy.deepcopy(task).train(training).named_modules()}
        image = batch["image"].float() / 255
        for what, call in (
            ("views", lambda: _views(twin, batch)),
            ("forward", lambda: _run(twin, batch)),
            ("after_step", lambda: twin.after_step(1.0)),
            ("picture", lambda: twin.picture(batch)),
            ("features", lambda: twin.features(image)),
        ):
            before = _global_state()
            with (
                torch.no_grad(),
                counted(CPU, Draw.VALIDATION, 0),
            ):  # torch's generator is there to be used, and put back by the caller
                call()
            changed = [name for name, value in _global_state().items() if value != before[name]]
            _promise(not changed, f"{what} changes {' and '.join(changed)} of the whole process")
            moved = [name for name, module in twin.named_modules() if module.training != frozen.get(name)]
            _promise(
                not moved,
                f"{what} leaves {moved[0] if moved else ''} in another mode (train or eval) than it found it in",
            )


def _check_features(task: PretextTask, batch: dict) -> None:
    twin = copy.deepcopy(task).eval()
    with torch.no_grad():
        found = twin.features(batch["image"].float() / 255)
    _promise("backbone" in found, "features gives no representation called backbone")
    for name, x in found.items():
        _promise(
            x.ndim == 2 and len(x) == len(batch["index"]) and bool(x.isfinite().all()),
            f"features[{name!r}] is {tuple(x.shape)}; it is finite (B, D)",
        )


def _check_pictures(task: PretextTask, batch: dict) -> None:
    twin = copy.deepcopy(task).eval()
    with torch.no_grad(), counted(CPU, Draw.VALIDATION, 0):
        drawn = twin.picture(batch)
    _promise(isinstance(drawn, dict), f"picture gave a {type(drawn).__name__}; it is a dict of pictures by name")
    for name, image in drawn.items():
        _promise(is_picture(image), f"the picture {name!r} is {kind_of(image)}; it is float (3, H, W)")
        _promise(bool(((image >= 0) & (image <= 1)).all()), f"the picture {name!r} has values outside 0 to 1, or NaN")


def _check_sizes(task: type[PretextTask], keywords: dict, arguments: dict) -> None:
    """Another size of picture, the smallest batch there is, and grey pictures."""
    cases = [(SIZES[1], IMAGES, 3), (SIZES[0], 2, 3)] + ([] if task.needs_colour else [(SIZES[0], 4, 1)])
    for size, images, channels in cases:
        what = f"{images} pictures of {size} pixels and {channels} channel(s)"
        try:
            loss = _run(_make(task, keywords, size, arguments), _batch(task, size, images, channels)).loss
        except (RuntimeError, ValueError, IndexError) as error:
            raise AssertionError(f"{task.__name__} doesn't work on {what}: {error}") from error
        _promise(bool(loss.isfinite()), f"the loss is {loss.item()} on {what}")


def _check_learns(task: PretextTask, batch: dict) -> PretextTask:
    """The loss of one fixed batch, with fixed views, falls. Returns what has learned it."""
    twin = copy.deepcopy(task)
    views = _views(twin, batch)
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(STEPS):
        output = twin(views)
        losses.append(output.loss.item())
        _promise(math.isfinite(losses[-1]), f"the loss is {losses[-1]} after {step} steps on one batch")
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        with torch.no_grad():
            twin.after_step((step + 1) / STEPS)
    _promise(
        min(losses) < losses[0] - FALL * abs(losses[0]),
        f"the loss of one fixed batch goes from {losses[0]:.4g} to no less than {min(losses):.4g} "
        f"in {STEPS} steps, so nothing is learned",
    )
    return twin


def _check_export(task: PretextTask, batch: dict) -> None:
    """What is exported and loaded again has the same features, to the last bit."""
    twin = copy.deepcopy(task).eval()
    image = batch["image"].float() / 255
    data = {"name": "generated", "version": "1", "license": "CC0-1.0", "attribution": "", "fingerprint": ""}
    card = new_card("contract", "", data | {"size": twin.backbone.size, "channels": 3})
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        loaded = load_task(export(twin, Path(folder) / "checkpoint", card))
        before, after = twin.features(image), loaded.features(image)
    _promise(
        before.keys() == after.keys(),
        f"after export and loading the features are {sorted(after)}, before {sorted(before)}",
    )
    for name in before:
        _promise(
            torch.equal(before[name], after[name]),
            f"features[{name!r}] differ after export and loading: some state is not in the checkpoint",
        )
    _promise(_equal(twin.heads(), loaded.heads()), "the heads differ after export and loading")


# ---- comparing -----------------------------------------------------------------------------------


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _equal(one: Any, other: Any) -> bool:
    pairs = list(_tensors(one)), list(_tensors(other))
    return len(pairs[0]) == len(pairs[1]) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*pairs, strict=True)
    )


def _global_state() -> dict[str, Any]:
    return {
        "Python's random numbers": random.getstate(),
        "NumPy's random numbers": pickle.dumps(np.random.get_state()),
        "whether gradients are recorded": torch.is_grad_enabled(),
        "the default type of numbers": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }

"""What a step of training promises: `views` draws, `forward` doesn't, and all state is in the state dict."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.contract.promise import equal, global_state, promise, tensors
from zoo.contract.small import CPU, run, views_of
from zoo.draws import Draw, counted
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput


def _no_logging(*given: Any, **also: Any) -> None:
    raise AssertionError("forward logs; what is worth a curve belongs into the logs of its TaskOutput")


def check_views(task: PretextTask, batch: dict) -> None:
    given = copy.deepcopy(batch)
    views = views_of(task, batch)
    promise(isinstance(views, tuple), f"views gave a {type(views).__name__}; it is a tuple")
    promise(
        equal(batch, given), "views writes into the batch that it was given, and thereby into the data; work on a copy"
    )
    for tensor in tensors(views):
        promise(
            not tensor.requires_grad,
            "views gave a tensor that carries a gradient; whatever learns belongs into forward",
        )
    promise(equal(pickle.loads(pickle.dumps(views)), views), "views gave something that pickling changes")


def check_loss(task: PretextTask, batch: dict) -> None:
    twin = copy.deepcopy(task)
    for name in ("log", "log_dict"):
        object.__setattr__(twin, name, _no_logging)
    output = run(twin, batch)
    promise(isinstance(output, TaskOutput), f"forward gave a {type(output).__name__}; it is a TaskOutput(loss, logs)")
    loss = output.loss
    promise(
        isinstance(loss, Tensor) and loss.ndim == 0, f"the loss is not a scalar tensor: {getattr(loss, 'shape', loss)}"
    )
    promise(bool(loss.isfinite()), f"the loss of the first batch is {loss.item()}")
    promise(loss.requires_grad, "the loss carries no gradient")
    for key, value in output.logs.items():
        promise(
            isinstance(value, (float, int)) or value.numel() == 1,
            f"logs[{key!r}] is not a scalar; Lightning can't draw a curve of it",
        )
    with torch.autocast("cpu", torch.bfloat16):
        narrow = run(copy.deepcopy(task), batch).loss
    promise(
        narrow.dtype == torch.float32 and bool(narrow.isfinite()),
        f"under autocast to bfloat16 the loss is {narrow.dtype} {narrow.item()}; switch autocast off for the loss and "
        "cast to float32 first",
    )


def check_randomness(task: PretextTask, batch: dict) -> None:
    twins = [copy.deepcopy(task) for _ in range(3)]
    random.seed(1), np.random.seed(1)  # of no consequence, if all randomness follows the counters
    first = views_of(twins[0], batch)
    random.seed(2), np.random.seed(2)
    again, other = views_of(twins[1], batch), views_of(twins[2], batch, Draw.TRAINING, 1)
    promise(
        equal(first, again), "views differ though the counters are the same; draw only from torch's default generator"
    )
    promise(
        equal(first, views_of(twins[0], batch)),
        "views gives something else when it is called again with the same counters; a resumed run would differ",
    )
    labelled = {"label": torch.arange(len(batch["index"])) % 3} | batch
    promise(
        equal(first, views_of(copy.deepcopy(task), labelled)),
        f"views reads the label where there is one, which its needs {task.needs} don't name",
    )
    losses = []
    for twin, views in zip(twins, (first, again, other), strict=True):
        with counted(CPU, 7):
            before = torch.get_rng_state()
            losses.append(twin(views).loss.item())
            promise(
                torch.equal(before, torch.get_rng_state()),
                "forward draws random numbers; everything random belongs into views",
            )
    promise(
        losses[0] == losses[1], f"the loss differs, {losses[0]} and {losses[1]}, though views and weights are the same"
    )
    promise(equal(first, other) or losses[0] != losses[2], "the loss doesn't change when the views do")


def check_state(task: PretextTask, batch: dict) -> None:
    """What a run is resumed from is the state dict alone."""
    used, fresh = copy.deepcopy(task), copy.deepcopy(task)
    for step in range(3):
        with torch.no_grad():
            run(used, batch, Draw.TRAINING, step)
            used.after_step((step + 1) / 3)
    fresh.load_state_dict(used.state_dict())
    with torch.no_grad():
        here, there = (run(twin, batch, Draw.TRAINING, 3).loss.item() for twin in (used, fresh))
    promise(
        here == there,
        f"after three steps the loss is {here}, and {there} for a task that was given its state: a resumed run would "
        "differ; keep what "
        "counts in a buffer, by register_buffer",
    )


def check_gradients(task: PretextTask, batch: dict) -> None:
    task = copy.deepcopy(task)
    task.zero_grad()
    run(task, batch).loss.backward()
    for name, parameter in task.named_parameters():
        if name.split(".")[0] in task.training_only:
            promise(
                parameter.grad is None,
                f"{name} gets a gradient, though {name.split('.')[0]} is a teacher (training_only)",
            )
        elif parameter.requires_grad:
            promise(
                parameter.grad is not None,
                f"{name} gets no gradient; what never learns hangs distributed training and has no place in a "
                "checkpoint",
            )
            promise(bool(parameter.grad.isfinite().all()), f"the gradient of {name} isn't finite")
        else:
            frozen = len(task.towers) == 1 and name.startswith(tuple(f"{tower}." for tower in task.towers))
            promise(not frozen, f"{name} can't learn: it doesn't require a gradient")
    networks = [p for backbone in task.tower.values() for p in backbone.parameters()]
    size = sum(float(p.grad.abs().sum()) for p in networks if p.grad is not None)
    promise(size > 0, "the gradient of the whole backbone is zero, so it learns nothing")


def check_leaves_as_found(task: PretextTask, batch: dict) -> None:
    for training in (True, False):
        twin = copy.deepcopy(task).train(training)
        frozen = {name: module.training for name, module in copy.deepcopy(task).train(training).named_modules()}
        for what, call in (
            ("views", lambda: views_of(twin, batch)),
            ("forward", lambda: run(twin, batch)),
            ("after_step", lambda: twin.after_step(1.0)),
            ("picture", lambda: twin.figure(batch)),
            ("features", lambda: twin.represent(batch)),
        ):
            before = global_state()
            with (
                torch.no_grad(),
                counted(CPU, Draw.VALIDATION, 0),
            ):  # torch's generator is there to be used, and put back by the caller
                call()
            changed = [name for name, value in global_state().items() if value != before[name]]
            promise(not changed, f"{what} changes {' and '.join(changed)} of the whole process")
            moved = [name for name, module in twin.named_modules() if module.training != frozen.get(name)]
            promise(
                not moved,
                f"{what} leaves {moved[0] if moved else ''} in another mode (train or eval) than it found it in",
            )

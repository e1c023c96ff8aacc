"""What every pretext task promises, as one function: for the zoo's own suite, and for authors of other packages.

    def test_contract():
        check_task(MyTask)

It takes a few seconds on one CPU core. Networks are tiny and pictures are generated, so nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import torch

from zoo.contract.declared import check_class, check_construction, class_of, fields_needed
from zoo.contract.promise import as_found
from zoo.contract.results import check_export, check_features, check_learns, check_pictures, check_sizes
from zoo.contract.small import SIZES, backbone_for, batch_of, make
from zoo.contract.step import (
    check_gradients,
    check_leaves_as_found,
    check_loss,
    check_randomness,
    check_state,
    check_views,
)
from zoo.tasks.base import PretextTask


def check_task(task: type[PretextTask] | str, **arguments: Any) -> None:
    """Raises AssertionError, with a sentence naming the broken promise, unless `task` keeps the contract of a pretext
    task.

    Args:
        task: the class, registered by `register_task` or by an entry point; or its name.
        arguments: those of its constructor but the backbone; smaller ones than the defaults make it quicker.

    Each tower gets a small network of the kind that it reads. Of images, a convolutional network is tried first, and a
    small ViT if the task refuses that with a ZooError. All random generators are left as they were found.
    """
    task = class_of(task)
    check_class(task)
    with as_found(), fields_needed(task), torch.enable_grad():
        torch.manual_seed(0)
        keywords = backbone_for(task, arguments)
        made, batch = make(task, keywords, SIZES[0], arguments), batch_of(task, SIZES[0])
        check_construction(made, arguments)
        check_views(made, batch)
        check_loss(made, batch)
        check_randomness(made, batch)
        check_state(made, batch)
        check_gradients(made, batch)
        check_leaves_as_found(made, batch)
        check_features(made, batch)
        check_pictures(made, batch)
        check_sizes(task, keywords, arguments)
        check_export(check_learns(made, batch), batch)

"""The whole path in one command: data, pretraining, checkpoint, hub, adaptation, table, page."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from shlex import quote

from zoo.errors import ZooError
from zoo.paths import expanded

RECIPE, NAME = "simclr-test-resnet-fashion-mnist", "quickstart"
FEW = 0.01  # share of the labels in the table's other half


def quickstart(
    out: str | Path = "quickstart", steps: int | None = None, progress: bool = True, resume: bool = False
) -> dict:
    """Pretrain a small recipe, push it to a hub folder, pull it back, adapt it three ways, and show what it is worth.

    Args:
        out: folder for everything that is written; it must not hold an earlier quickstart.
        steps: optimizer steps instead of the recipe's.
        resume: go on with an interrupted one in `out`.

    Returns {data, rows, checkpoint, hub, page, minutes}. Uses Fashion-MNIST, or scikit-learn's digits where that can't
    be had.
    """
    from zoo.checkpoint.write import update_card
    from zoo.evaluate.printed import print_table
    from zoo.evaluate.study import Study
    from zoo.evaluate.table import measure_study
    from zoo.hub import hub
    from zoo.hub import push as pushing
    from zoo.pretrain import pretrain
    from zoo.report.page import write_page

    start, out = time.perf_counter(), expanded(out)
    run = out / "run"
    if not resume and (run.exists() or (out / "hub").exists()):
        raise ZooError(
            f"{out} holds a quickstart already; add --resume to go on with one that was interrupted, remove it, or "
            "add --out ANOTHER-FOLDER"
        )
    data, changes = _data()
    if steps is not None:
        changes["trainer.max_steps"] = steps
    _say(f"pretraining {RECIPE} on {data}")
    if not (run / "checkpoint").is_dir():
        pretrain(RECIPE, out=run, resume=(run / "recipe.yaml").is_file(), progress=progress, **changes)
    update_card(run / "checkpoint", license="Apache-2.0")
    pushing.push(run / "checkpoint", out / "hub", name=NAME, replace=resume)
    pulled = hub.pull(NAME, hub=str(out / "hub"))
    _say(f"pushed to {out / 'hub'} and pulled back as {NAME!r}, every file's sha256 checked")
    _say("adapting: nearest neighbours, a linear probe, and fine-tuning, beside random weights and raw pixels")
    pairs = [("knn", 1.0), ("knn", FEW), ("linear", 1.0), ("linear", FEW), ("finetune", FEW)]
    rows = measure_study(Study(pulled, data), pairs)
    page = write_page(out / "report.html", [run / "checkpoint"], rows)
    minutes = (time.perf_counter() - start) / 60
    print_table(rows)
    _say(
        f"done in {minutes:.1f} minutes; open {page} for pictures, or go on with:  zoo adapt {NAME} --hub "
        f"{quote(str(out / 'hub'))} --data {data}"
    )
    return {
        "data": data,
        "rows": rows,
        "checkpoint": str(run / "checkpoint"),
        "hub": str(out / "hub"),
        "page": str(page),
        "minutes": round(minutes, 2),
    }


def _data() -> tuple[str, dict]:
    """Fashion-MNIST where any source has it, else digits; and the recipe keys that change with it."""
    from zoo.data.datasets import get_data

    try:
        _say("getting fashion-mnist (31 MB, once)")
        get_data("fashion-mnist")
        return "fashion-mnist", {}
    except ZooError as error:
        _say(f"{error}\nGoing on with scikit-learn's digits instead: 1,797 pictures of 8 x 8, so expect less.")
        # 8-pixel pictures enlarged, an epoch of 9 steps, and digits have a handedness
        return "digits", {
            "data.name": "digits",
            "data.size": 28,
            "data.batch_size": 128,
            "task.flip": 0.0,
            "trainer.max_steps": 300,
        }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

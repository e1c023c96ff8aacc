"""Loggers by name. A logger that fails is warned of once and never ends a run."""

from __future__ import annotations

import csv
import io
import netrc
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from zoo.errors import ZooError, nearest
from zoo.paths import write_text

NAMES = ("csv", "tensorboard", "wandb", "none")
STEP = "trainer/global_step"  # what Lightning calls the step in wandb


def create_logger(name: str, folder: str | Path, recipe: dict) -> Careful | bool:
    """The logger of a run, writing below its `folder`, with the resolved recipe as configuration.

    csv writes folder/metrics.csv; tensorboard folder/tensorboard; wandb folder/wandb, offline unless a key is at hand
    or WANDB_MODE says otherwise; none logs nothing. Raises ZooError for an unknown name or a missing package; one that
    can't be begun for another reason is warned of, and False returned.
    """
    folder = Path(folder)
    if name not in NAMES:
        raise ZooError(f"{name!r} is not a logger{nearest(name, NAMES)}")
    if name == "none":
        return False
    folder.mkdir(parents=True, exist_ok=True)
    make = {"csv": lambda folder, recipe: Curves(folder), "tensorboard": _tensorboard, "wandb": _wandb}[name]
    try:
        return Careful(make(folder, recipe), name)
    except ZooError:
        raise
    except Exception as error:  # whatever a service or a full disk does, training is worth more
        _leave_out(name, error)
        return False


def log_pictures(logger: Any, pictures: dict[str, Tensor], step: int) -> None:
    """Named pictures (3, H, W) in [0, 1], where the logger has a place for them."""
    if isinstance(logger, Careful):
        logger.guard(_PICTURES.get(logger.kind, _nothing), logger.inner, pictures, step)


def log_checkpoint(logger: Any, folder: Path, name: str) -> None:
    """The checkpoint folder as an artifact, where the logger keeps such; then the logger is closed."""
    if isinstance(logger, Careful):
        if logger.kind == "wandb":
            logger.guard(_wandb_artifact, logger.inner, folder, name)
        logger.guard(_close, logger.inner)


class Careful(Logger):
    """Passes everything on; if the logger behind it raises, warns once and lets the run go on without it."""

    def __init__(self, inner: Logger, kind: str):
        super().__init__()
        self.inner, self.kind, self.broken = inner, kind, False

    def guard(self, call: Callable, *arguments: Any, **keywords: Any) -> Any:
        if self.broken:
            return None
        try:
            return call(*arguments, **keywords)
        except Exception as error:
            self.broken = True
            _leave_out(self.kind, error)
            return None

    @property
    def name(self) -> str | None:
        return self.inner.name

    @property
    def version(self) -> str | int | None:
        return self.inner.version

    @property
    def root_dir(self) -> str | None:
        return self.inner.root_dir

    @property
    def experiment(self) -> Any:
        return self.inner.experiment

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.guard(self.inner.log_metrics, metrics, step)

    def log_hyperparams(self, params: Any, *arguments: Any, **keywords: Any) -> None:
        """The recipe is logged at the start; Lightning has nothing to add."""

    @property
    def rows(self) -> int:
        """How many have been logged, where they can be taken back."""
        return len(self.inner.rows) if isinstance(self.inner, Curves) else 0

    def rewind(self, count: int, row: dict[str, float], step: int) -> None:
        """A run goes on from a saved state: what was logged since is taken back, and `row`, which was about to be
        logged, is.
        """
        if isinstance(self.inner, Curves):
            self.guard(self.inner.rewind, count)
            if row:
                self.guard(self.inner.log_metrics, row, step)

    def save(self) -> None:
        self.guard(self.inner.save)

    def finalize(self, status: str) -> None:
        self.guard(self.inner.finalize, status)
        if status == "failed":  # wandb would go on with this run in the next one of the process
            self.guard(_finish, self.inner, 1)


def _leave_out(kind: str, error: Exception) -> None:
    warnings.warn(
        f"the {kind} logger failed and is left out from here on: {type(error).__name__}: {error}", stacklevel=3
    )


class Curves(Logger):
    """metrics.csv in the run's folder itself. A row is appended; what rewrites the file (a new column, going on with a
    run) replaces it whole, so that a kill at any moment costs a part of the last row at most."""

    name = version = ""
    experiment = None

    def __init__(self, folder: Path):
        super().__init__()
        self.path, self.rows, self.columns = folder / "metrics.csv", [], ["step"]
        if self.path.is_file():
            text = self.path.read_text(errors="replace").splitlines()
            self.rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(text)]
            if any(None in row for row in self.rows):
                raise ValueError(f"{self.path} has rows that are longer than its first")
            self.columns = sorted({"step"}.union(*self.rows))
            self._rewrite()

    @property
    def root_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics | {"step": step})
        if not metrics.keys() <= set(self.columns) or not self.path.is_file():
            self.columns = sorted(metrics.keys() | set(self.columns))
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(self.rows[-1])

    @rank_zero_only
    def rewind(self, count: int) -> None:
        """Forgets all but the first `count` rows."""
        if len(self.rows) > count:
            self.rows = self.rows[:count]
            self._rewrite()

    def log_hyperparams(self, params: Any, *arguments: Any, **keywords: Any) -> None:
        """The recipe lies beside the file."""

    @rank_zero_only
    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        try:
            write_text(self.path, text.getvalue())
        except ZooError as error:  # of a logger, this ends no run
            raise OSError(str(error)) from error


def _tensorboard(folder: Path, config: dict) -> Logger:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise ZooError(
            'the tensorboard logger needs a package that is not installed: pip install "pretext-zoo[tensorboard]"'
        ) from None
    import yaml
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(folder, name="", version="tensorboard")
    logger.experiment.add_text("recipe", f"```\n{yaml.safe_dump(config, sort_keys=False)}```")
    return logger


def _wandb(folder: Path, config: dict) -> Logger:
    try:
        import wandb
    except ImportError:
        raise ZooError(
            'the wandb logger needs a package that is not installed: pip install "pretext-zoo[wandb]"'
        ) from None
    from lightning.pytorch.loggers import WandbLogger

    mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    # an absolute folder, since wandb's own process writes there, which was begun with the first run and stays where
    # this one was then
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "pretext-zoo"),
        name=folder.name,
        dir=str(folder.absolute()),
        config=config,
        mode=mode,
        settings=wandb.Settings(silent=True),
    )
    run.define_metric("*", step_metric=STEP)  # the axis of every curve; by default it counts calls of log
    return WandbLogger(experiment=run)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return path.is_file() and any("wandb" in host for host in netrc.netrc(str(path)).hosts)
    except (netrc.NetrcParseError, OSError):
        return False


def _wandb_pictures(logger: Any, pictures: dict[str, Tensor], step: int) -> None:
    import wandb

    logger.experiment.log(
        {f"pictures/{name}": wandb.Image(_bytes(picture)) for name, picture in pictures.items()} | {STEP: step}
    )


def _tensorboard_pictures(logger: Any, pictures: dict[str, Tensor], step: int) -> None:
    for name, picture in pictures.items():
        logger.experiment.add_image(f"pictures/{name}", picture.detach().cpu().clamp(0, 1), step)


def _nothing(*ignored: Any) -> None:
    return None


_PICTURES: dict[str, Callable] = {"wandb": _wandb_pictures, "tensorboard": _tensorboard_pictures}


def _wandb_artifact(logger: Any, folder: Path, name: str) -> None:
    import wandb

    artifact = wandb.Artifact(name, type="model")
    artifact.add_dir(str(folder))
    logger.experiment.log_artifact(artifact)


def _close(logger: Any) -> None:
    logger.finalize("success")
    _finish(logger, 0)


def _finish(logger: Any, status: int) -> None:
    if hasattr(logger.experiment, "finish"):  # wandb's alone
        logger.experiment.finish(exit_code=status)


def _bytes(picture: Tensor) -> Any:
    return (picture.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()

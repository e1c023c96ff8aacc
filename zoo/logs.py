"""Loggers by name. A logger that fails is warned of once and never ends a run."""

from __future__ import annotations

import netrc
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor

from zoo.errors import ZooError, nearest

NAMES = ("csv", "tensorboard", "wandb", "none")
STEP = "trainer/global_step"                        # what Lightning calls the step in wandb
SECRET = re.compile(r"(^|[_.-])(token|secret|password|passwd|api[_-]?key|credentials?)$", re.IGNORECASE)


def create_logger(name: str, folder: str | Path, recipe: dict) -> "Careful | bool":
    """The logger of a run, writing below its `folder`, with the resolved recipe as configuration.

    csv writes folder/metrics.csv; tensorboard folder/tensorboard; wandb folder/wandb, offline unless a key is at hand or
    WANDB_MODE says otherwise; none logs nothing. Raises ZooError for an unknown name or a missing package; one that can't be begun
    for another reason is warned of, and False returned.
    """
    folder = Path(folder)
    if name not in NAMES:
        raise ZooError(f"{name!r} is not a logger{nearest(name, NAMES)}")
    if name == "none":
        return False
    folder.mkdir(parents=True, exist_ok=True)
    make = {"csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb}[name]
    try:
        return Careful(make(folder, without_secrets(recipe)), name)
    except ZooError:
        raise
    except Exception as error:                      # whatever a service or a full disk does, training is worth more
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


def without_secrets(values: dict) -> dict:
    """The same mapping without keys that look like a token or a password; true and false, as in a ViT's class_token, are no secrets."""
    return {key: without_secrets(value) if isinstance(value, dict) else value for key, value in values.items()
            if isinstance(value, bool) or not SECRET.search(str(key))}


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

    def save(self) -> None:
        self.guard(self.inner.save)

    def finalize(self, status: str) -> None:
        self.guard(self.inner.finalize, status)
        if status == "failed":                      # wandb would go on with this run in the next one of the process
            self.guard(_finish, self.inner, 1)


def _leave_out(kind: str, error: Exception) -> None:
    warnings.warn(f"the {kind} logger failed and is left out from here on: {type(error).__name__}: {error}", stacklevel=3)


def _csv(folder: Path, config: dict) -> CSVLogger:
    """metrics.csv in the run's folder itself. A resumed run appends: its earlier rows are read back first."""
    import csv

    logger = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=50)
    path = folder / "metrics.csv"
    with warnings.catch_warnings():                 # it warns that the folder isn't empty, as a run's never is
        warnings.simplefilter("ignore")
        earlier = list(csv.DictReader(path.read_text(errors="replace").splitlines())) if path.is_file() else []
        logger.experiment.metrics = [{key: value for key, value in row.items() if value != ""} for row in earlier]
        logger.experiment.metrics_keys = list(earlier[0]) if earlier else []
    logger.save()                                   # at once, since Lightning has just removed the file
    return logger


def _tensorboard(folder: Path, config: dict) -> Logger:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise ZooError('the tensorboard logger needs a package that is not installed: pip install "pretext-zoo[tensorboard]"') from None
    import yaml
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(folder, name="", version="tensorboard")
    logger.experiment.add_text("recipe", f"```\n{yaml.safe_dump(config, sort_keys=False)}```")
    return logger


def _wandb(folder: Path, config: dict) -> Logger:
    try:
        import wandb
    except ImportError:
        raise ZooError('the wandb logger needs a package that is not installed: pip install "pretext-zoo[wandb]"') from None
    from lightning.pytorch.loggers import WandbLogger

    mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    run = wandb.init(project=os.environ.get("WANDB_PROJECT", "pretext-zoo"), name=folder.name, dir=str(folder), config=config, mode=mode,
                     settings=wandb.Settings(silent=True))
    run.define_metric("*", step_metric=STEP)        # the axis of every curve; by default it counts calls of log
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

    logger.experiment.log({f"pictures/{name}": wandb.Image(_bytes(picture)) for name, picture in pictures.items()} | {STEP: step})


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
    if hasattr(logger.experiment, "finish"):        # wandb's alone
        logger.experiment.finish(exit_code=status)


def _bytes(picture: Tensor) -> Any:
    return (picture.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()

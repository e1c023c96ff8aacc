"""One run: its parts, made in order, and what is written at its end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback

from zoo import recipe as recipes
from zoo.backbones.create import check_forward
from zoo.checkpoint.describe import data_entry, new_card
from zoo.checkpoint.write import export
from zoo.colour import require_colour
from zoo.data.dataset import take
from zoo.data.datasets import DataInfo
from zoo.data.folder.cache import BAD_SAMPLES, bad_lines
from zoo.data.module import ZooData, create_data
from zoo.data.order import batches_done
from zoo.draws import Draw, counted
from zoo.errors import Terminated, ZooError
from zoo.evaluate.check import check_metric
from zoo.machine import cpu, ranks
from zoo.machine.devices import device_of
from zoo.machine.logs import create_logger, log_checkpoint, log_pictures
from zoo.machine.preemption import Preemption
from zoo.machine.progress import Progress
from zoo.machine.provenance import machine
from zoo.machine.resumable import LAST, Clock, SafeCheckpointIO, SaveState, newest_good
from zoo.paths import write_text
from zoo.tasks.base import PretextTask
from zoo.tasks.output import wrong_figure
from zoo.train import fsdp, run_folder
from zoo.train.fit import asked_of, build
from zoo.train.looks import FeatureHealth, Looks, OnlineKNN
from zoo.train.settings import Training
from zoo.train.strategy import strategy

LOOKED_AT = 2000  # validation pictures of a look, where a recipe doesn't say how often to look


class _Run:
    """One run: its parts, made in order, and what is written at its end."""

    def __init__(
        self, name: str, resolved: dict, folder: Path, info: DataInfo, smoke: bool, asked: dict, sources: dict
    ):
        self.name, self.resolved, self.folder, self.smoke = name, resolved, folder, smoke
        self.asked = asked  # what the recipe says of that which data or machine may lower
        self.sources = sources  # weights that towers start from; none in a resumed run, whose state has them
        self.training = Training(**resolved["trainer"])
        self.first = ranks.rank(self.training.devices, self.training.nodes) == 0
        self.info = asked_of(resolved, info)
        # The network is built before the data are downloaded, so that mistakes in the recipe show at once.
        self.task = build(resolved, self.info, sources)
        if self.training.strategy == "fsdp":
            fsdp.check(self.task, self.training.processes, self.training.channels_last)
        with counted(torch.device("cpu"), Draw.WEIGHTS):  # leaves torch's generator as it was
            for backbone in self.task.tower.values():
                check_forward(backbone)
        if self.training.precision == "bf16" and device_of(self.training.accelerator) == "cpu":
            for backbone in self.task.tower.values():
                cpu.check_strides(backbone)
        self.data = self._data(info)
        self._learned(self.task)
        if self.task.needs_colour:  # of a folder or shards, the pixels alone tell
            require_colour(
                self.data.dataset.fields["image"], self.data.dataset.splits["train"], self.task.name, info.name
            )

    def _learned(self, task: PretextTask) -> PretextTask:
        """The task, after every network has learned what it takes from the training split, such as a vocabulary."""
        fields, rows = self.data.dataset.fields, self.data.dataset.splits["train"]
        for backbone in task.tower.values():
            if backbone.needs_learning:
                backbone.learn(take({"values": fields[backbone.field]}, rows)["values"])
        return task

    def _data(self, info: DataInfo) -> ZooData:
        if not self.smoke:
            data = create_data(**self.resolved["data"])
        else:
            from zoo.data.generated import generate

            data = ZooData(generate(self.info), self.resolved["data"]["batch_size"])
        looked_at = LOOKED_AT if self.training.validate_every is None else None
        return data.for_run(self.resolved["seed"], looked_at, may_shrink="data.batch_size" in self.asked)

    def train(self, resume: bool, logger: str, progress: bool) -> Path:
        state = self._state(resume)
        log = create_logger(logger, self.folder, self.resolved) if self.first else False
        clock, bar = Clock(), Progress(description=self.name, quiet=not progress)
        self.saving = saving = SaveState(self.folder, self.training.save_every)
        if self.first:
            saving.beside = {
                path: path.read_bytes() for path in (self.folder / run_folder.FACTS, self.folder / run_folder.RECIPE)
            }
        self.preemption = Preemption(saving)
        trainer = self._trainer(
            log, [LambdaCallback(setup=self._agree), clock, saving, self.preemption, bar]
        )  # saving is nobody's waiting for data
        if self.training.channels_last:
            self.task.to(memory_format=torch.channels_last)
        with ranks.together(trainer, self.training.timeout):
            self._fit(trainer, state)
            self.minutes = clock.seconds / 60
            saving.write(trainer)
            if self.training.strategy == "fsdp":
                self.task = fsdp.whole(trainer, self._learned(build(self.resolved, self.info)))
        if not self.first:
            return self.folder
        figures = self._figures()
        path = export(self.task.cpu().eval(), self.folder / "checkpoint", self._card(trainer), figures)
        images = {name: figure for name, figure in figures.items() if not isinstance(figure, str)}
        log_pictures(log, images, trainer.global_step)
        log_checkpoint(log, path, self.name)
        return self.folder

    def _agree(self, trainer: L.Trainer, *ignored: Any, **also: Any) -> None:
        """The first process chose the folder, and the others, which write into it too, learn of it when they have
        met.
        """
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        self.saving.path = self.folder / LAST
        self.data.dataset.follow(self.folder)

    def _fit(self, trainer: L.Trainer, state: Path | None) -> None:
        try:
            with self.preemption:
                trainer.fit(self.task, self.data, ckpt_path=state, weights_only=True)
        except Terminated as end:
            if end.code != 130:
                raise
            raise KeyboardInterrupt(str(end)) from None
        except SystemExit:
            if not trainer.interrupted:
                raise
            raise KeyboardInterrupt from None  # which Lightning turns into sys.exit(1)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise ZooError(
                f"a step of data.batch_size {self.data.batch_size} doesn't fit into the memory; give it a smaller one "
                "and, for as many pictures a "
                "step, a larger trainer.accumulate, with another --out; or free some memory and go on with --resume"
            ) from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            more = "add images to the folder" if self.data.may_shrink else "give it a larger one"
            raise ZooError(
                f"batch normalisation has no spread to go by in a step of data.batch_size {self.data.batch_size}; "
                f"{more} "
                "(a larger data.size may do as well)"
            ) from error

    def _trainer(self, log, callbacks: list[L.Callback]) -> L.Trainer:
        t = self.training
        evenly = t.validate_every is None
        if not self.smoke:
            callbacks = [*callbacks, *([] if t.validate_every == 0 else [OnlineKNN()]), FeatureHealth()]
        if evenly:
            callbacks = [*callbacks, Looks()]
        if t.processes > 1:
            callbacks = [*callbacks, ranks.Watch(t.timeout)]
        return L.Trainer(
            max_steps=t.max_steps,
            max_epochs=t.max_epochs,
            accelerator=t.accelerator,
            devices=t.devices,
            num_nodes=t.nodes,
            strategy=strategy(t.processes, t.timeout, t.strategy),
            precision="bf16-mixed" if t.precision == "bf16" else "32-true",
            accumulate_grad_batches=t.accumulate,
            gradient_clip_val=t.clip or None,
            check_val_every_n_epoch=None if evenly else t.validate_every or 1,
            val_check_interval=1 if evenly else None,
            limit_val_batches=0 if t.validate_every == 0 else None,
            logger=log,
            callbacks=callbacks,
            plugins=[SafeCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            log_every_n_steps=self._log_every(),
            default_root_dir=self.folder,
        )

    def _log_every(self) -> int:
        """Steps between two points of a curve: ten, or fewer in short runs and epochs, which would else leave no
        curve.
        """
        batches = max(1, len(self.data.dataset.splits["train"]) // (self.data.batch_size * self.training.processes))
        steps = min(limit for limit in (self.training.max_steps, self.training.max_epochs * batches) if limit > 0)
        return max(1, min(10, batches, steps // 20))

    def _state(self, resume: bool) -> Path | None:
        """The state to go on from. What the run is made of has to be what it was."""
        facts = {
            "data": self.data.dataset.fingerprint,
            "torch": torch.__version__,
            "processes": self.training.processes,
        }
        known = self.folder / run_folder.FACTS
        if resume:
            for key, was in run_folder.facts_of(known).items():
                if facts.get(key) != was and key == "data":
                    raise ZooError(
                        f"the data of {self.folder} have changed since the run began, so it can't be resumed; start a "
                        "new one with --out"
                    )
                if facts.get(key) != was and key == "processes":
                    raise ZooError(
                        f"{self.folder} was begun with {was} processes and this would go on with {facts[key]}, which "
                        "is another order and another "
                        f"global batch; start {was}, by trainer.devices and trainer.nodes, or a new run with --out"
                    )
            return newest_good(self.folder)
        self.data.ensure_full_step(self.training.processes, self.first)
        self.resolved = self.resolved | {"data": self.resolved["data"] | {"batch_size": self.data.batch_size}}
        if not self.first:
            return None
        now = dict(recipes.flat(self.resolved))
        if self.sources:
            facts["parents"] = {tower: source.parent for tower, source in self.sources.items()}
        facts["lowered"] = {key: value for key, value in self.asked.items() if now[key] != value}
        if "trainer.precision" in facts["lowered"]:
            print(
                "this machine has no instructions for bf16, so trainer.precision is 32 instead",
                file=sys.stderr,
                flush=True,
            )
        write_text(known, json.dumps(facts, indent=1))  # first, since by it the rest is known to be a run's
        (self.folder / BAD_SAMPLES).unlink(missing_ok=True)  # of a run that ended here before it had saved anything
        if bad := self.data.dataset.bad:
            listed = write_text(self.folder / BAD_SAMPLES, bad_lines(bad))
            print(
                f"{len(bad):,} images can't be read and were {'replaced' if 'replaced_by' in bad[0] else 'left out'}; "
                f"{listed} names them",
                file=sys.stderr,
            )
        recipes.save(self.resolved, self.folder / "recipe.yaml")
        return None

    def _figures(self) -> dict[str, torch.Tensor | str]:
        """What the task draws of 64 samples, for the checkpoint and the loggers."""
        split = "validation" if len(self.data.dataset.splits["validation"]) else "train"
        rows = self.data.dataset.splits[split]
        # Samples of a folder lie sorted by class, so 64 rows are drawn from the whole split.
        chosen = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:64]]
        task = self.task.cpu().float().eval()
        with counted(torch.device("cpu"), self.resolved["seed"], Draw.PICTURES), torch.no_grad():
            figures = task.figure(take(self.data.dataset.fields, chosen))
        if wrong := wrong_figure(figures):
            raise ZooError(
                f"figure of the task {task.name} gave {wrong}; it has to give (3, H, W) tensors of floats, or texts, "
                f"by name; mend that, and --resume, with --out {self.folder}, writes the checkpoint of what is trained"
            )
        return figures

    def _card(self, trainer: L.Trainer) -> dict:
        info, r = self.data.dataset.info, self.resolved
        value = None if self.smoke else check_metric(self.task, self.data)
        check = {"protocol": "knn", "data": info.name, "images": 2000, "value": value, "tolerance": 0.5}
        return new_card(
            self.name,
            _summary(self.task),
            data_entry(info, self.data.dataset.fingerprint),
            recipe=r,
            seed=r["seed"],
            parent=run_folder.parent_of(self.folder),
            steps=trainer.global_step,
            samples_seen=batches_done(trainer) * r["data"]["batch_size"] * self.training.processes,
            minutes=round(self.minutes, 2),
            machine=machine(str(trainer.strategy.root_device)),
            check=None if value is None else check,
        )


def _summary(task: PretextTask) -> str:
    kind = type(task)
    text = (
        kind.__doc__ if kind.__module__ == "__main__" else sys.modules[kind.__module__].__doc__
    )  # a script or notebook is about more than its task
    return (text or "").strip().split("\n")[0]

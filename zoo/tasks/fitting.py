"""What Lightning calls of a pretext task: one step, its checks, its logs and its schedule."""

from __future__ import annotations

import math

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.data import sized_len
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from zoo.data.module import ZooData
from zoo.data.order import batches_done
from zoo.draws import Draw, counted
from zoo.errors import ZooError
from zoo.losses import averaged, gather, many
from zoo.machine import cpu
from zoo.machine.norms import use_global_batch_norm
from zoo.machine.resumable import LocalCheckpointIO
from zoo.tasks.output import TaskOutput, kind_of

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class Fitting(L.LightningModule):
    """The half of a task that `Trainer.fit` drives. A task writes none of it: it inherits from `PretextTask`."""

    def setup(self, stage: str) -> None:
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = LocalCheckpointIO()
        if stage == "fit" and str(self.trainer.precision) not in PRECISIONS:
            raise ZooError(
                f"precision {self.trainer.precision} would keep the weights in other than 32 bits, in which views and "
                "losses are computed; use one of " + ", ".join(PRECISIONS)
            )
        if self.trainer.world_size > 1:
            use_global_batch_norm(self)
        if stage == "fit" and self.trainer.strategy.root_device.type == "cpu":
            patches = [math.prod(backbone.grid) for backbone in self.tower.values() if backbone.grid]
            cpu.quicken(self, max(patches, default=None))
            cpu.keep_memory()

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self.trainer.strategy.root_device.type == "cpu":
            cpu.restore(self)
            cpu.give_memory_back()

    def on_train_epoch_start(self) -> None:
        loader, most = self.trainer.train_dataloader, self.trainer.num_training_batches
        length = sized_len(loader) if isinstance(loader, DataLoader) else None  # a sampler may give each epoch another
        self._check_lengths("training", most if length is None else min(most, length))

    def on_validation_epoch_start(self) -> None:
        self._check_lengths("validation", sum(self.trainer.num_val_batches))

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        output = self._run(batch, Draw.TRAINING, batches_done(self.trainer))
        # Every process sees the mean, so that all processes end the run when the loss of one is not finite.
        logs = averaged({"loss": output.loss, **output.logs})
        self._check_finite(logs, batch_idx)
        self._terms = (
            {key: value.detach() if isinstance(value, Tensor) else value for key, value in logs.items()},
            batch_idx,
        )
        self.log_dict(logs, batch_size=self._samples_in(batch), prog_bar=True)
        return output.loss * self._share(batch_idx)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        output = self._run(batch, Draw.VALIDATION, batch_idx)
        self.log("val_loss", output.loss, batch_size=self._samples_in(batch), sync_dist=True)

    def predict_step(self, batch: dict, batch_idx: int) -> dict[str, Tensor]:
        return self.represent(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if not math.isfinite(self.trainer.estimated_stepping_batches):
            raise ZooError("the schedule has to know how long the run is: give max_steps or max_epochs")
        optimizer = self.optim.build(self)
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        return optimizer

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop the run before a NaN or infinite gradient reaches the weights.

        In float16 Lightning's scaler skips steps with such gradients itself, so nothing is checked there.
        """
        if not self.trainer.global_step:
            self._check_reached()
        found = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None or bool(
            torch.nn.utils.get_total_norm(found.values()).isfinite()
        ):
            return
        # Every element may be finite while the squared norm overflows; Adam's second moment would then be infinite.
        wrong = [name for name, gradient in found.items() if not gradient.square().sum().isfinite()] or list(found)
        more = f" and of {len(wrong) - 1} more of {len(found)} parameters" if len(wrong) > 1 else ""
        raise self._not_finite(f"the gradient of {wrong[0]}{more} isn't finite", *self._terms)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Lightning's clipping, and also that of a fused optimizer in bfloat16.

        Lightning refuses to clip for fused optimizers, because some of them undo the scaling of gradients. In bfloat16
        nothing is scaled.
        """
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled or not gradient_clip_val or gradient_clip_algorithm not in (None, "norm"):
            return super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        torch.nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group["params"]], gradient_clip_val
        )

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        """One true step: Lightning never calls this for the inner batches of an accumulation."""
        done, total = self.trainer.global_step, self.trainer.estimated_stepping_batches
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * self.optim.scale((done + 0.5) / total)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        with torch.no_grad():
            self.after_step((done + 1) / total)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path, map_location=None, **arguments):
        """Lightning's loading of a .ckpt on this machine, read as tensors and plain values alone.

        An address is refused: Lightning would run the code in a file that the address serves.
        """
        if "://" in str(checkpoint_path):
            raise ZooError(
                f"{str(checkpoint_path)[:80]} is an address, and a .ckpt that comes from elsewhere isn't loaded; pull "
                "a checkpoint from a hub"
            )
        return super().load_from_checkpoint(
            checkpoint_path, map_location=map_location, **arguments | {"weights_only": True}
        )

    def _run(self, batch: dict, *counters: int) -> TaskOutput:
        self._check_fields(batch)
        self._check_shares(batch)
        with counted(self.device, self.seed, self.global_rank, *counters):
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                views = self.views(batch)
            output = self(views)
        if not isinstance(output, TaskOutput) or not isinstance(output.loss, Tensor) or output.loss.ndim:
            raise ZooError(
                f"forward of the task {self.name or type(self).__name__} gave "
                f"{kind_of(getattr(output, 'loss', output))}; it has to give a TaskOutput whose loss is a "
                "tensor with one number"
            )
        return output

    def _check_fields(self, batch: dict) -> None:
        """Raises ZooError for a batch that lacks a field. A user's own DataLoader may give anything."""
        name = self.name or type(self).__name__
        if not isinstance(batch, dict):
            raise ZooError(
                f"a batch is {kind_of(batch)}, and the task {name} takes a dict with {' and '.join(self.needs)}, as "
                "zoo.create_data gives it; "
                "let your data give such, as {'image': image}"
            )
        if missing := [field for field in self.needs if field not in batch]:
            held = ", ".join(map(str, batch)) or "nothing"
            raise ZooError(
                f"the task {name} needs {' and '.join(missing)}, which the batches don't have; they hold {held}"
            )

    def _share(self, batch_idx: int) -> float:
        """Factor that keeps a step's gradient the mean over its batches.

        Lightning always divides by accumulate_grad_batches, even for the shorter last step of an epoch.
        """
        many, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        first = batch_idx // many * many
        return many / (batches - first) if math.isfinite(batches) and batches < first + many else 1.0

    def _samples_in(self, batch: dict) -> int:
        return len(batch[self.needs[0]])

    def _check_lengths(self, of: str, batches: float) -> None:
        """Raises ZooError unless all processes have the same number of batches.

        A process that finishes first would leave the others waiting in a collective call. A loader without a length
        can't be checked.
        """
        counts = self._of_all(int(batches) if math.isfinite(batches) else -1)
        if len(set(counts)) > 1 and min(counts) >= 0:
            raise ZooError(
                f"the processes have {' and '.join(map(str, counts))} batches of {of}, and they have to have as many "
                "each; let Lightning put its "
                "sampler into the loader, or have yours give every process as many"
            )

    def _check_shares(self, batch: dict) -> None:
        """Raises ZooError unless all processes have batches of the same size, because losses are gathered."""
        counts = self._of_all(self._samples_in(batch))
        if len(set(counts)) > 1:
            raise ZooError(
                f"the processes have batches of {' and '.join(map(str, counts))} pictures, and they have to have as "
                "many each; let Lightning "
                "put its sampler into the loader, or give it drop_last=True"
            )

    def _of_all(self, count: int) -> list[int]:
        """The count of each process, or of this process alone where the zoo's own data make all counts equal."""
        if not many() or isinstance(self.trainer.datamodule, ZooData):
            return [count]
        return gather(torch.tensor([count], device=self.device)).tolist()

    def _check_reached(self) -> None:
        """Raises ZooError for parameters without a gradient after the first step.

        A matrix of a backbone without a gradient stays random, and the features may go through it. Vectors may stay:
        a norm begins as the identity. DDP waits for every gradient and would fail in the next step.
        """
        wait = isinstance(self.trainer.model, DistributedDataParallel) and not self.trainer.model.find_unused_parameters
        inside = tuple(f"{tower}." for tower in self.towers)
        lost = [
            name
            for name, p in self.named_parameters()
            if p.requires_grad and p.grad is None and (wait or p.ndim > 1 and name.startswith(inside))
        ]
        if not lost:
            return
        who, first = self.name or type(self).__name__, lost[0]
        more = f" and {len(lost) - 1} more of its parameters" if len(lost) > 1 else ""
        why = (
            "and processes that train together wait for every gradient"
            if wait
            else "so its features would go through random numbers"
        )
        if not first.startswith(inside):
            raise ZooError(
                f"the task {who} leaves {first}{more} without gradient, {why}; its loss has to depend on all of them"
            )
        tower, _, parameter = first.partition(".")
        mend = (
            "take one whose features are its last map, pooled, such as test_resnet, or of a ViT one with "
            "global_pool: avg and fc_norm: false"
            if self.towers[tower] == "image"
            else "its loss has to depend on all of them"
        )
        raise ZooError(
            f"the task {who} leaves {parameter.removeprefix('model.')} of the backbone {self.tower[tower].name}"
            f"{more} without gradient, {why}; {mend}"
        )

    def _check_finite(self, logs: dict, batch_idx: int) -> None:
        loss = logs["loss"].item()
        if not math.isfinite(loss):
            raise self._not_finite(
                f"the loss of {self.name or type(self).__name__} is {loss}",
                {k: v for k, v in logs.items() if k != "loss"},
                batch_idx,
            )

    def _not_finite(self, what: str, terms: dict, batch_idx: int) -> ZooError:
        listed = ", ".join(f"{key} {float(value):.3g}" for key, value in terms.items())
        return ZooError(
            f"{what} at epoch {self.current_epoch}, batch {batch_idx}{f' ({listed})' if listed else ''}; "
            "a lower optim.lr or a longer optim.warmup usually mends it"
        )

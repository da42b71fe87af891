"""What watches a run: random numbers by position, pace, progress, checkpoints and the best epoch."""

from __future__ import annotations

import hashlib
import logging
import math
import statistics
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from mwa_lightning.adapters.files.adapter_file import save_adapter, trained_state
from mwa_lightning.errors import CheckpointError, ConfigError, NotFinite
from mwa_lightning.sharded_tensors import whole
from mwa_lightning.training.callbacks.ema import WeightAverage
from mwa_lightning.training.callbacks.guards import NonFiniteGuard
from mwa_lightning.training.callbacks.stopping import StopAgreement
from mwa_lightning.training.distributed.processes import gathered
from mwa_lightning.training.lightning_private import log_training_step
from mwa_lightning.training.loggers.base import LosableLogger
from mwa_lightning.training.loggers.making import TableLogger
from mwa_lightning.training.optim import LOGITS
from mwa_lightning.training.runs.checkpointing import LAST, CheckpointFiles
from mwa_lightning.training.runs.resuming import is_foreign
from mwa_lightning.training.runs.run_directory import RunDirectory

log = logging.getLogger(__name__)


class PositionSeeds(pl.Callback):
    """Before each micro-batch, seeds the random generators from (seed, rank, epoch, batch).

    So dropout draws the same numbers whether or not the run was stopped before.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        torch.manual_seed(position_seed(self.seed, trainer.global_rank, trainer.current_epoch, batch_idx))


def position_seed(*position: int) -> int:
    """A seed from whole numbers, far from those of neighbouring positions."""
    return int.from_bytes(hashlib.sha256(repr(position).encode()).digest()[:8])


class Pace(pl.Callback):
    """Measures optimizer steps; logs learning rate and pace: `lr`, `time/step_s`, `time/samples_per_s`.

    A step is timed from the end of the one before, so waiting for data counts and validation does not. Work
    on a GPU runs on beside the host, which the guard against non-finite numbers holds back to one step ahead:
    the median is that of the GPU.
    """

    def __init__(self) -> None:
        self.step_seconds: list[float] = []
        self._begin: float | None = None
        self._samples = 0
        self._step = 0
        self._rates: dict[str, float] = {}

    @property
    def median(self) -> float:
        """The median of the seconds a step, NaN if there was none."""
        return statistics.median(self.step_seconds) if self.step_seconds else float("nan")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget what lay between the epochs."""
        self._begin = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock for the first step."""
        if self._begin is None:
            self._begin, self._samples, self._step = time.perf_counter(), 0, trainer.global_step
        self._samples += len(batch.sample_ids) * trainer.world_size

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note the learning rate of this step: of what trains at full rate, and of the lowest layer."""
        groups = {
            group["scale"]: float(group["lr"])
            for group in optimizer.param_groups
            if not set(group["names"]) <= set(LOGITS)
        }
        self._rates = {"lr": groups[max(groups)]}
        if len(groups) > 1:
            self._rates["lr/lowest_layer"] = groups[min(groups)]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the time if this batch ended a step."""
        if trainer.global_step == self._step or self._begin is None:
            return
        now = time.perf_counter()
        seconds = now - self._begin
        self.step_seconds.append(seconds)
        pl_module.log_dict(
            {**self._rates, "time/step_s": seconds, "time/samples_per_s": self._samples / seconds},
            batch_size=1,
        )
        self._begin, self._samples, self._step = now, 0, trainer.global_step


class Progress(pl.Callback):
    """A line every half minute, where there is no terminal for a progress bar."""

    SECONDS = 30.0

    def __init__(self) -> None:
        self._next = time.perf_counter() + self.SECONDS

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a line if it is time for one."""
        now = time.perf_counter()
        if now < self._next:
            return
        self._next = now + self.SECONDS
        batches, loss = trainer.num_training_batches, trainer.callback_metrics.get("train/loss")
        shown = "" if loss is None else f", loss {float(loss):.4f}"
        log.info("epoch %d: batch %d of %s%s", trainer.current_epoch + 1, batch_idx + 1, batches, shown)


class RunKeeper(pl.Callback):
    """Keeps the best epoch's weights, writes checkpoints, and stops a run that does not get better.

    `adapter.safetensors` holds the epoch with the highest `monitor` on validation (with a moving average, its
    averages). From a checkpoint of another run directory, only epochs whose weights are known count: that which it
    ends, and those to come. `last.ckpt` is written at the end of each epoch, and within one every `every_n_steps`
    optimizer steps, always between two steps; where `stop` says so, the run is saved and ended. It belongs last among
    the callbacks, so that what it writes is the state after all others.
    """

    def __init__(
        self,
        *,
        run: RunDirectory,
        files: CheckpointFiles,
        table: TableLogger,
        monitor: str,
        metadata: dict[str, Any],
        every_n_steps: int | None,
        patience: int | None,
        stop: StopAgreement,
    ) -> None:
        self.run = run
        self.files = files
        self.table = table
        self.monitor = monitor
        self.metadata = metadata
        self.every_n_steps = every_n_steps
        self.patience = patience
        self.resumed_from: Path | None = None
        self.stop = stop
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._waited = 0
        self.best_figures: dict[str, float] = {}
        self._score: float | None = None
        self._figures: dict[str, float] = {}
        self._seconds = 0.0
        self._clock: float | None = None
        self._saved_step = 0
        self._position = {"epoch": 0, "next_batch": 0}
        self._owes_adapter = False

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training and validation, earlier starts of the run included."""
        return self._seconds + (0.0 if self._clock is None else time.perf_counter() - self._clock)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, say where it goes on; a run that had stopped early stays stopped.

        Raises ConfigError if there are too many processes for the global batch that it goes on with.
        """
        sampler = trainer.datamodule.sampler  # type: ignore[attr-defined]
        pl_module.check_share(sampler.batch_size // sampler.world_size)  # type: ignore[operator]
        self._clock = time.perf_counter()
        self._saved_step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, LosableLogger):
                logger.begin(trainer.global_step)
        self.leave_adapter(trainer, pl_module)
        self._stop_if_waited(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is due; the last batch of an epoch is left to the epoch's end."""
        step = trainer.global_step
        if trainer.max_steps != -1 and step >= trainer.max_steps:
            # Ends the epoch here with a validation; Lightning alone would end it without.
            trainer.should_stop = True
            return
        if batch_idx + 1 == trainer.num_training_batches:
            return
        due = self.every_n_steps is not None and step % self.every_n_steps == 0 and step > self._saved_step
        stops = self.stop.due(trainer)
        if due or stops:
            # Lightning logs a step's figures after this hook: the checkpoint would come without its last
            # step's, which would be lost if the run were killed in between. The table takes them once.
            log_training_step(trainer)
            self._save(trainer, epoch=trainer.current_epoch, batches=batch_idx + 1)
        if stops:
            self.stop.stop(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the score. Raises ConfigError if validation gives no metric of the monitored name."""
        if not self.monitor.startswith("val/") or self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise ConfigError(f"training.monitor={self.monitor}: there is no such metric; take one of {known}")
        self._score = float(trainer.callback_metrics[self.monitor])
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self._figures = {self.monitor: self._score} | figures

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the epoch if it is the best, and save."""
        score, self._score = self._score, None
        # A score that is not a number is never the best, and one that equals the best does not replace it.
        better = score is not None and not math.isnan(score) and (self.best is None or score > self.best)
        if better:
            self.best, self.best_epoch, self._waited = score, trainer.current_epoch, 0
            self.best_figures = self._figures
            self.save_adapter(trainer, pl_module)
        elif score is not None:
            self._waited += 1
        loss = trainer.callback_metrics.get("train/loss", torch.tensor(float("nan")))
        log.info(
            "epoch %d of %d, step %d: train/loss %.4f%s, %.1f s",
            trainer.current_epoch + 1,
            trainer.max_epochs or 0,
            trainer.global_step,
            float(loss),
            "" if score is None else f", {self.monitor} {score:.2f}{' (best so far)' if better else ''}",
            self.seconds,
        )
        self._stop_if_waited(trainer)
        self._save(trainer, epoch=trainer.current_epoch + 1, batches=0)
        if better and trainer.is_global_zero:
            self.files.keep_as_best(self.files.directory / LAST)
        if self.stop.agreed:
            self.stop.stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock; where no validation ever came, the last weights are what there is.

        Raises NotFinite if there were some, and none had a number for a score.
        """
        self._seconds, self._clock = self.seconds, None
        if self.best is None and self._waited:
            raise NotFinite(
                f"training.monitor={self.monitor}: was not a number at any validation, so none is the best; look at "
                f"{self.run.metrics_table}"
            )
        if self.best is None:
            self.save_adapter(trainer, pl_module)

    def leave_adapter(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where the weights came with a checkpoint of another run directory, write them: nothing else has yet."""
        if self._owes_adapter:
            self._owes_adapter = False
            self.save_adapter(trainer, pl_module)

    def save_adapter(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what was trained, as it is now, to `adapter.safetensors`."""
        state = trained_state(pl_module.get_submodule("model"))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAverage):
                state = callback.average
        state = {name: whole(tensor) for name, tensor in state.items()}
        if trainer.is_global_zero:
            save_adapter(self.run.adapter, state, metadata=self.metadata)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Drop what is frozen; an epoch that is through is the beginning of the next."""
        trained = [name for name, parameter in pl_module.named_parameters() if parameter.requires_grad]
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in trained}
        sampler = checkpoint[type(trainer.datamodule).__qualname__]["sampler"]  # type: ignore[attr-defined]
        sampler.update(self._position)

    def state_dict(self) -> dict[str, Any]:
        """Scores, time so far and the length of the table of figures, for checkpoints."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_figures": self.best_figures,
            "waited": self._waited,
            "seconds": self.seconds,
            "table_bytes": self.table.settle(),
            "position": dict(self._position),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint: figures that were written after it are cut.

        Raises CheckpointError if its best metrics are not what a validation gives.
        """
        assert self.resumed_from is not None
        self._check_best(state_dict["best"], state_dict["best_figures"])
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        self.best_figures = state_dict["best_figures"]
        self._waited, self._seconds = state_dict["waited"], state_dict["seconds"]
        self._position = state_dict["position"]
        ends_best = self.best_epoch is not None and self._position == {"epoch": self.best_epoch + 1, "next_batch": 0}
        if ends_best and self.run.writes:
            self.files.keep_as_best(self.resumed_from)  # the run may have been killed before it came to that
        self._owes_adapter = is_foreign(self.resumed_from, self.files.directory)
        if not self._owes_adapter:
            self.table.cut(state_dict["table_bytes"])
        elif not ends_best and self.best is not None:
            log.warning(
                "%s does not hold the weights of the best epoch so far, %d: the best of those from here on counts",
                self.resumed_from,
                self.best_epoch + 1,
            )
            self.best, self.best_epoch, self.best_figures, self._waited = None, None, {}, 0

    def _save(self, trainer: pl.Trainer, *, epoch: int, batches: int) -> None:
        """Write `last.ckpt`, unless the step before it is still to be found bad, or too many images are unreadable."""
        ledger = trainer.datamodule.ledger  # type: ignore[attr-defined]
        ledger.merge(gathered(ledger.news))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, NonFiniteGuard):
                callback.flush(trainer)
        self._position = {"epoch": epoch, "next_batch": batches}
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.files.directory / LAST)

    def _check_best(self, best: float | None, figures: dict[str, float]) -> None:
        """Raise CheckpointError if the best score and the metrics of its epoch, as a file has them, do not agree."""
        numbers = all(isinstance(value, float) for value in figures.values())
        of_validation = all(name.startswith("val/") for name in figures)
        if not (numbers and of_validation and figures.get(self.monitor) == best):
            raise CheckpointError(
                f"{self.resumed_from}: the metrics of the best epoch in it are not those of a validation; use another "
                "checkpoint"
            )

    def _stop_if_waited(self, trainer: pl.Trainer) -> None:
        if self.patience is not None and self._waited >= self.patience:
            trainer.should_stop = True

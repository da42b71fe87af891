"""How a run ends at a signal: between two steps, all ranks at the same one, and back into SLURM's queue."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, distributed

from mwa_lightning.errors import Stopped, UserError
from mwa_lightning.training import slurm
from mwa_lightning.training.processes import Processes
from mwa_lightning.training.run_directory import RunDirectory
from mwa_lightning.training.signals import Signals

log = logging.getLogger(__name__)


class StopAgreement(pl.Callback):
    """Tells `RunKeeper` when to save and end because any rank was told to; raises Stopped in evaluations.

    After each batch the ranks exchange one number on the processor (gloo, whatever the devices use), and look at it a
    batch later: nothing waits for it, no device is synchronised, and all of them see it at the same step.
    """

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self.agreed = False
        self._ranks: Any = None
        self._pending: tuple[Any, Tensor] | None = None
        self._step = 0

    def due(self, trainer: pl.Trainer) -> bool:
        """Whether to end now: it is agreed, and the batch that was just used has completed an optimizer step."""
        return self.agreed and trainer.global_step > self._step

    def stop(self, trainer: pl.Trainer) -> None:
        """End the run, which was just saved. Raises Stopped."""
        name = "another rank's signal" if self.signals.noted is None else self.signals.noted.name
        message = f"{name} after step {trainer.global_step}, which is saved"
        log.info("stopped by %s", message)
        raise Stopped(message)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the ranks' own line."""
        if trainer.world_size > 1:
            self._ranks = distributed.new_group(backend="gloo")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the step that this batch belongs to."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read what was exchanged after the batch before, and ask anew."""
        self._receive()
        self._send()
        if self._ranks is None:
            self._receive()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask at once: the run is saved here in any case, and validation may have taken long."""
        self._receive()
        self._send()
        self._receive()

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave an evaluation at once: it leaves nothing half-done. Raises Stopped."""
        self.signals.check("during the evaluation, which is to be made again")

    def _send(self) -> None:
        told = torch.tensor(int(self.signals.noted is not None))
        work = None
        if self._ranks is not None:
            work = distributed.all_reduce(told, op=distributed.ReduceOp.MAX, group=self._ranks, async_op=True)
        self._pending = (work, told)

    def _receive(self) -> None:
        if self._pending is None:
            return
        (work, told), self._pending = self._pending, None
        if work is not None:
            work.wait()
        self.agreed = self.agreed or bool(told)


@contextmanager
def stopping(config: DictConfig, signals: Signals, processes: Processes, run: RunDirectory) -> Iterator[None]:
    """Say how a run goes on that a signal has ended, and under SLURM put its job back into the queue.

    Raises Stopped, also where a process finds the others gone that had the same signal.
    """
    try:
        yield
    except Stopped as stopped:
        raise Stopped(f"stopped by {stopped}; {_what_next(config, processes, run)}") from None
    except RuntimeError as error:
        if isinstance(error, UserError) or signals.noted is None or processes.count == 1:
            raise
        # The others ended before; what they saved is there.
        raise Stopped(f"stopped by {signals.noted.name}; {_what_next(config, processes, run)}") from error


def _what_next(config: DictConfig, processes: Processes, run: RunDirectory) -> str:
    if config.training.requeue and slurm.batch_job() is not None:
        said = slurm.requeue() if processes.first else "its job is the first rank's affair"
        log.info("%s", said)
        return said
    return f"go on with run_dir={run.path}" if run.config.is_file() else "nothing was written yet, start again"

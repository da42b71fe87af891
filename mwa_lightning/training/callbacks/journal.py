"""What `train.log` says of where a run is, so that it tells where one was killed."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl

from mwa_lightning.training.runs.console import FILE_ONLY

log = logging.getLogger(__name__)


class Journal(pl.Callback):
    """Notes where training and validation begin; checkpoints note themselves."""

    def __init__(self) -> None:
        self._epoch: int | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """An epoch begins, or goes on in its middle, where Lightning has no other hook."""
        if self._epoch != trainer.current_epoch:
            self._epoch = trainer.current_epoch
            log.info("epoch %d: training from step %d", self._epoch + 1, trainer.global_step, extra=FILE_ONLY)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        log.info("epoch %d: validation", trainer.current_epoch + 1, extra=FILE_ONLY)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        log.info("epoch %d: validated", trainer.current_epoch + 1, extra=FILE_ONLY)

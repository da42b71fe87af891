"""What `train.log` says of where a run is, so that it tells where one was killed."""

from __future__ import annotations

import logging

import lightning.pytorch as pl

from mwa_lightning.training.console import FILE_ONLY

log = logging.getLogger(__name__)


class Journal(pl.Callback):
    """Notes when training and validation begin and end; checkpoints note themselves."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """An epoch begins, or goes on."""
        log.info("epoch %d: training from step %d", trainer.current_epoch + 1, trainer.global_step, extra=FILE_ONLY)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Its validation begins."""
        log.info("epoch %d: validation", trainer.current_epoch + 1, extra=FILE_ONLY)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Its validation is through."""
        log.info("epoch %d: validated", trainer.current_epoch + 1, extra=FILE_ONLY)

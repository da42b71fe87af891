"""What is done once, before the first step of a run."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from mwa_lightning.data.base import SplitDataModule
from mwa_lightning.data.loading.datasets import Loader
from mwa_lightning.tasks.base import AdaptationTask


class FittedStart(pl.Callback):
    """Shows the task some batches of the training data before the first step, for what it fits to them.

    A run that resumes has done so. It belongs before the callbacks that keep weights.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the batches, and let the task see them with the model as evaluation has it."""
        task, data = pl_module, trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(task, AdaptationTask)
        assert isinstance(data, SplitDataModule)
        if trainer.global_step or not task.samples_to_fit:
            return
        loader = trainer.train_dataloader
        assert isinstance(loader, Loader)
        batches = data.first_batches(loader, samples=task.samples_to_fit)
        on_device = [trainer.strategy.batch_to_device(batch) for batch in batches]
        torch.manual_seed(self.seed + trainer.global_rank)  # of the wrong partners that are drawn
        task.model.eval()
        try:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                task.fit_start(on_device)
        finally:
            task.model.train()

"""Image-text retrieval as a LightningModule: it wires model, loss and metrics, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mwa_lightning.data.records import ImageBatch, TextBatch, TrainBatch
from mwa_lightning.errors import ConfigError
from mwa_lightning.metrics.recall import RetrievalRecall
from mwa_lightning.tasks.losses import clamp_logit_scale, contrastive_loss
from mwa_lightning.tasks.model import RetrievalModel

Stage = Literal["val", "test"]


class RetrievalTask(LightningModule):
    """Trains with the symmetric contrastive loss over the global batch, evaluates with Recall@K.

    Evaluation runs over two loaders, one of images and one of captions, in any order. It logs `val/...` and
    `test/...` figures in percent (`i2t_r1` and its kin, `mean_recall`).

    Args:
        model: What trains and what is evaluated.
        logit_scale_max: The bound of the scale of the logits; it is applied after each step of the optimizer.
        mask_same_image: Whether other pairs of the same image are left out of the loss; the official recipes
            take them as negatives.
        one_k: Whether to report the 1K figure of COCO too.
        keep_embeddings: Whether the embeddings of a test run stay in `test_recall.embedded`, in file order.
        configure: Makes optimizer and schedule for this task; only training needs it.

    Raises:
        ConfigError: If `logit_scale_max` is not above 1.
    """

    def __init__(
        self,
        *,
        model: RetrievalModel,
        logit_scale_max: float = 100.0,
        mask_same_image: bool = True,
        one_k: bool = False,
        keep_embeddings: bool = False,
        configure: Callable[[RetrievalTask], OptimizerLRScheduler] | None = None,
    ) -> None:
        super().__init__()
        if not logit_scale_max > 1:
            raise ConfigError(f"task.logit_scale_max={logit_scale_max}: give a number above 1, such as 100")
        self.model = model
        self.logit_scale_max = logit_scale_max
        self.mask_same_image = mask_same_image
        self.configure = configure
        self.val_recall = RetrievalRecall(one_k=one_k)
        self.test_recall = RetrievalRecall(one_k=one_k, keep=keep_embeddings)

    def model_step(self, batch: TrainBatch) -> Tensor:
        """The loss of a batch of pairs."""
        return contrastive_loss(
            self.model.encode_image(batch.images),
            self.model.encode_text(batch.ids, batch.mask),
            logit_scale=self.model.heads.logit_scale,
            image_ids=batch.image_ids,
            mask_same_image=self.mask_same_image,
        )

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """One step; the logged loss is that of the global batch."""
        loss = self.model_step(batch)
        size = len(batch.image_ids)
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True, batch_size=size)
        self.log("train/logit_scale", self.model.heads.logit_scale.detach().exp(), batch_size=size)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then bound the logit scale: before any callback sees the weights or writes a checkpoint."""
        super().optimizer_step(*args, **kwargs)
        clamp_logit_scale(self.model.heads.logit_scale, largest=self.logit_scale_max)

    def validation_step(self, batch: ImageBatch | TextBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed a batch of images or captions."""
        self._embed(batch, self.val_recall)

    def test_step(self, batch: ImageBatch | TextBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed a batch of images or captions."""
        self._embed(batch, self.test_recall)

    def on_validation_epoch_start(self) -> None:
        """Forget what an evaluation that was broken off has left."""
        self._begin(self.val_recall)

    def on_test_epoch_start(self) -> None:
        """Forget what an evaluation that was broken off has left."""
        self._begin(self.test_recall)

    def on_validation_epoch_end(self) -> None:
        """Log the figures."""
        self._log_figures("val", self.val_recall)

    def on_test_epoch_end(self) -> None:
        """Log the figures."""
        self._log_figures("test", self.test_recall)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """What `configure` makes."""
        assert self.configure is not None, "training needs `configure`"
        return self.configure(self)

    def _begin(self, recall: RetrievalRecall) -> None:
        """Start with empty rows: a process that gets no batch takes part in the gathering all the same."""
        recall.reset()
        rows = torch.empty(0, self.model.heads.width, device=self.device)
        index = torch.empty(0, dtype=torch.int64, device=self.device)
        recall.update_images(rows, index)
        recall.update_texts(rows, index, index)

    def _embed(self, batch: ImageBatch | TextBatch, recall: RetrievalRecall) -> None:
        if isinstance(batch, ImageBatch):
            recall.update_images(self.model.encode_image(batch.images), batch.image_index)
        else:
            recall.update_texts(self.model.encode_text(batch.ids, batch.mask), batch.text_index, batch.image_index)

    def _log_figures(self, stage: Stage, recall: RetrievalRecall) -> None:
        """Every process computes the same figures from all embeddings; a sanity check sees too few."""
        if not self.trainer.sanity_checking:
            figures = recall.compute()
            self.log_dict({f"{stage}/{name}": value for name, value in figures.items()})
        recall.reset()

"""What every task is as a LightningModule: a loss a step, a metric for each stage, figures at the end of one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.tasks.losses.signs import Signs
from mwa_lightning.tasks.model import AdaptedModel
from mwa_lightning.tasks.sharding import clip_gradients, is_sharded, shard

Stage = Literal["val", "test"]
ModelT = TypeVar("ModelT", bound=AdaptedModel)
MetricT = TypeVar("MetricT", bound=Metric)


class AdaptationTask(LightningModule, Generic[ModelT, MetricT]):
    """Base of the tasks: subclasses say what the loss is and what the metric takes of a batch.

    `val/...` and `test/...` figures are logged at the end of an evaluation.

    Args:
        model: What trains and what is evaluated.
        val_metric: Gathers the validation.
        test_metric: Gathers the test.
        configure: Makes optimizer and schedule for this task; only training needs it.

    Attributes:
        signs: Of the last training batch, whether the model learns: one entry for each part of the loss that
            `model_step` notes there, none where a task has nothing to say.
    """

    def __init__(
        self,
        *,
        model: ModelT,
        val_metric: MetricT,
        test_metric: MetricT,
        configure: Callable[[Any], OptimizerLRScheduler] | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.val_metric = val_metric
        self.test_metric = test_metric
        self.configure = configure
        self.signs: list[Signs] = []

    @classmethod
    @abstractmethod
    def make_heads(cls, backbone: Backbone, shape: Any = None, *, name: str) -> nn.Module:
        """Draw the heads of a backbone for data of a shape; None = that of the usual data of the task's `name`.

        Their `pretrained` part, or else they as a whole, is read from the backbone's file where that holds heads.
        """

    @classmethod
    @abstractmethod
    def make_model(cls, backbone: Backbone, adapter: AdapterMethod, heads: Any) -> AdaptedModel:
        """Attach an adapter to a backbone with heads that `make_heads` has drawn."""

    @classmethod
    def untrained(cls, names: str) -> str | None:
        """Why heads that are freshly drawn cannot be evaluated without training; None = only a warning is due."""
        return f"has no heads for this task ({names}), and adapter=none trains none"

    @classmethod
    def file_shape(cls, name: str, *, images: int | None, classes: Sequence[str]) -> Any:
        """The shape that an adapter file tells of its task; without images, that of the task's usual data."""
        return None

    @classmethod
    def data_shape(cls, data: Any) -> Any:
        """What of the data the heads have to fit; None = nothing."""
        return None

    @classmethod
    def data_options(cls, data: Any) -> dict[str, Any]:
        """Options of the task that the data's configuration sets."""
        return {}

    def scoring(self) -> tuple[str, str]:
        """How an evaluation scores: the word in tables of published results, and a phrase."""
        return "logits", "logits of the head"

    @property
    def contrasts_one_batch(self) -> bool:
        """Whether the negatives of a sample are those of its own batch, so that accumulation adds none."""
        return False

    @abstractmethod
    def model_step(self, batch: Any) -> Tensor:
        """The loss of a batch; its `signs` are noted."""

    @property
    def samples_to_fit(self) -> int:
        """How many samples of the training data `fit_start` is to see; 0 = there is nothing to fit."""
        return 0

    def fit_start(self, batches: Sequence[Any]) -> None:
        """Fit what has a best value for the model as it is, before the first step, to batches of the training data."""

    def check_share(self, samples: int) -> None:
        """Raise ConfigError if a process cannot train with so many samples of each global batch."""

    @abstractmethod
    def update(self, batch: Any, metric: MetricT) -> None:
        """Show the metric what the model makes of a batch."""

    @abstractmethod
    def begin(self, metric: MetricT, stage: Stage) -> None:
        """Start an evaluation: a process that gets no batch takes part in the gathering all the same."""

    def figures(self, metric: MetricT) -> dict[str, Tensor]:
        """What an evaluation comes to, in percent; the same in every process."""
        figures: dict[str, Tensor] = metric.compute()
        return figures

    @abstractmethod
    def write_predictions(self, path: Path, data: Any) -> None:
        """Write what the test run kept of the split `data.test_split`, in file order."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step; the logged loss is that of the global batch."""
        loss = self.model.run(self.model_step, batch)
        size = len(batch.sample_ids)
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True, batch_size=size)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.model.run(self.update, batch, self.val_metric)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.model.run(self.update, batch, self.test_metric)

    def on_validation_epoch_start(self) -> None:
        """Forget what an evaluation that was broken off has left."""
        self.val_metric.reset()
        self.begin(self.val_metric, "val")

    def on_test_epoch_start(self) -> None:
        """Forget what an evaluation that was broken off has left."""
        self.test_metric.reset()
        self.begin(self.test_metric, "test")

    def on_validation_epoch_end(self) -> None:
        self._log_figures("val", self.val_metric)

    def on_test_epoch_end(self) -> None:
        self._log_figures("test", self.test_metric)

    def configure_model(self) -> None:
        """Shard the model where the strategy is for that; for an evaluation after a training it is already."""
        if self.device_mesh is not None and not is_sharded(self.model):
            shard(self.model, self.device_mesh["data_parallel"])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients together, whoever holds them.

        Lightning would refuse to in mixed precision, for the optimizer is fused; its gradients are unscaled by now.
        """
        if gradient_clip_val:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            clip_gradients(parameters, limit=gradient_clip_val, by_value=gradient_clip_algorithm == "value")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self.configure is not None, "training needs `configure`"
        return self.configure(self)

    def _log_figures(self, stage: Stage, metric: MetricT) -> None:
        """Every process computes the same figures from all samples; a sanity check sees too few."""
        if not self.trainer.sanity_checking:
            figures = self.figures(metric)
            self.log_dict({f"{stage}/{name}": value for name, value in figures.items()})
        metric.reset()

"""Statements about images as a LightningModule: visual reasoning and entailment differ in their classes only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.data.samples.statements import StatementBatch
from mwa_lightning.errors import ConfigError
from mwa_lightning.metrics.reasoning import StatementAccuracy
from mwa_lightning.report.predictions import write_statement_predictions
from mwa_lightning.tasks.base import AdaptationTask, Stage
from mwa_lightning.tasks.losses.functions import classification_loss
from mwa_lightning.tasks.losses.signs import Signs, knowing_nothing_of_classes, variance_of_logits
from mwa_lightning.tasks.model import ReasoningModel
from mwa_lightning.tasks.reasoning_heads import ReasoningHeads, StatementShape, reasoning_heads

if TYPE_CHECKING:
    from mwa_lightning.data.statement_datamodule import StatementDataModule

# What a model is made for where neither data nor an adapter file says it, by the task's name: NLVR2, SNLI-VE.
USUAL_SHAPES = {
    "reasoning": StatementShape(images=2, classes=("False", "True")),
    "entailment": StatementShape(images=1, classes=("contradiction", "neutral", "entailment")),
}

Blind = Literal["images", "text"]
GREY = 128


class ReasoningTask(AdaptationTask[ReasoningModel, StatementAccuracy]):
    """Trains with cross-entropy over the global batch, evaluates with accuracy and, where it is known, consistency.

    It logs `val/...` and `test/...` figures in percent (`accuracy`, `consistency`, `<subset>/accuracy`). Beside them
    stand those of not looking: `test/majority`, what the most common class of the training data gives, and
    `test/text_bound` and `test/images_bound`, the most that any model can get that sees nothing but the text, or
    nothing but the images.

    Args:
        model: What trains and what is evaluated.
        label_smoothing: Share of the target that is spread evenly over all classes.
        blind: What is hidden, in training as in evaluation, for a baseline: `images` are all grey then, a `text` is its
            first token alone.
        keep_predictions: Whether the logits of a test run stay in `test_metric.classified`, in file order.
        configure: Makes optimizer and schedule for this task; only training needs it.

    Raises:
        ConfigError: If `blind` is none of these.
    """

    def __init__(
        self,
        *,
        model: ReasoningModel,
        label_smoothing: float = 0.0,
        blind: Blind | None = None,
        keep_predictions: bool = False,
        configure: Callable[[ReasoningTask], OptimizerLRScheduler] | None = None,
    ) -> None:
        if blind is not None and blind not in get_args(Blind):
            raise ConfigError(f"task.blind={blind}: choose {' or '.join(get_args(Blind))}, or null")
        super().__init__(
            model=model,
            val_metric=StatementAccuracy(),
            test_metric=StatementAccuracy(keep=keep_predictions),
            configure=configure,
        )
        self.label_smoothing = label_smoothing
        self.blind = blind
        classes = len(model.heads.shape.classes)
        self._training_shares = torch.full((classes,), 1 / classes)  # of each class, until they are known

    @classmethod
    def make_heads(cls, backbone: Backbone, shape: StatementShape | None = None, *, name: str) -> ReasoningHeads:
        return reasoning_heads(backbone, shape or USUAL_SHAPES[name])

    @classmethod
    def make_model(cls, backbone: Backbone, adapter: AdapterMethod, heads: ReasoningHeads) -> ReasoningModel:
        return ReasoningModel(backbone=backbone, adapter=adapter, heads=heads)

    @classmethod
    def untrained(cls, names: str) -> str | None:
        return (
            f"has no head for these statements ({names}), and adapter=none trains none; train one, or give a file that "
            "was fine-tuned for the task"
        )

    @classmethod
    def file_shape(cls, name: str, *, images: int | None, classes: Sequence[str]) -> StatementShape:
        return USUAL_SHAPES[name] if images is None else StatementShape(images=images, classes=tuple(classes))

    @classmethod
    def data_shape(cls, data: StatementDataModule) -> StatementShape:
        return StatementShape(images=data.images_a_sample, classes=data.classes)

    def scoring(self) -> tuple[str, str]:
        return "argmax", "argmax of the classes"

    def model_step(self, batch: StatementBatch) -> Tensor:
        """The loss of a batch of statements."""
        logits = self.logits(batch)
        loss = classification_loss(logits, batch.labels, label_smoothing=self.label_smoothing)
        shares = self._training_shares
        guessing = knowing_nothing_of_classes(batch.labels, shares, label_smoothing=self.label_smoothing)
        self.signs = [Signs("classes", loss.detach(), guessing, {"statements": variance_of_logits(logits)})]
        return loss

    def on_fit_start(self) -> None:
        """Look how often each class is right in the training data."""
        labels = self._data.training_labels()
        assert labels is not None
        counts = np.bincount(labels, minlength=len(self._training_shares))
        self._training_shares = torch.tensor(counts / counts.sum(), dtype=torch.float32, device=self.device)

    def logits(self, batch: StatementBatch) -> Tensor:
        """Scores (b, classes) of what is shown of a batch."""
        images, ids, mask = batch.images, batch.ids, batch.mask
        if self.blind == "images":
            images = torch.full_like(images, GREY)
        elif self.blind == "text":
            ids, mask = ids[:, :1], mask[:, :1]
        # Not by a call of the module: `run` has gathered the weights already.
        logits: Tensor = self.model.forward(images, ids, mask)
        return logits

    def update(self, batch: StatementBatch, metric: StatementAccuracy) -> None:
        metric.update(self.logits(batch), batch.labels, batch.sample_index)

    def begin(self, metric: StatementAccuracy, stage: Stage) -> None:
        """Say what the samples of the split are; start with empty rows."""
        data = self._data
        split = data.split("val" if stage == "val" else data.test_split)
        metric.describe(identifiers=split.statements.identifiers, groups=split.groups, subsets=split.subsets)
        rows = torch.empty(0, len(self.model.heads.shape.classes), device=self.device)
        index = torch.empty(0, dtype=torch.int64, device=self.device)
        metric.update(rows, index, index)

    def on_test_epoch_end(self) -> None:
        """Log the figures, and those of models that do not look."""
        super().on_test_epoch_end()
        statements = self._data.split(self._data.test_split).statements
        labels = statements.labels
        self.log("test/majority", majority_accuracy(self._data.training_labels(), labels))
        self.log("test/text_bound", bound_without_the_rest(list(statements.texts), labels))
        self.log("test/images_bound", bound_without_the_rest(list(map(tuple, statements.image_index.tolist())), labels))

    def write_predictions(self, path: Path, data: StatementDataModule) -> None:
        """Write logits, labels and identifiers of the split that was tested."""
        classified = self.test_metric.classified
        assert classified is not None, "make the task with keep_predictions"
        write_statement_predictions(
            path,
            logits=classified.logits,
            labels=classified.labels,
            identifiers=data.split(data.test_split).statements.identifiers,
            classes=data.classes,
        )

    @property
    def _data(self) -> StatementDataModule:
        data: StatementDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data


def majority_accuracy(training: np.ndarray | None, labels: np.ndarray) -> float:
    """Percent of labels (n,) that are the most common one of the training data, or of themselves if there is none."""
    counts = np.bincount(labels if training is None or not len(training) else training)
    return 100 * float((labels == counts.argmax()).mean())


def bound_without_the_rest(seen: Sequence[Hashable], labels: np.ndarray) -> float:
    """The most, in percent, that a model can get right that knows of each sample (n) nothing but what is `seen`.

    It has to answer alike where it sees the same: the best answer there is the most common label (n,).
    """
    counts: dict[Hashable, Counter[int]] = {}
    for key, label in zip(seen, labels.tolist(), strict=True):
        counts.setdefault(key, Counter())[label] += 1
    return 100 * sum(max(of_one.values()) for of_one in counts.values()) / len(labels)

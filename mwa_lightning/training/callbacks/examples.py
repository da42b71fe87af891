"""A few samples of the validation split as pictures, to see what a run has learned so far."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl

from mwa_lightning.data.datamodule import RetrievalDataModule
from mwa_lightning.data.statement_datamodule import StatementDataModule
from mwa_lightning.metrics.query_results import captions_found, images_found
from mwa_lightning.report.examples import (
    Drawing,
    Shown,
    draw_captions_found,
    draw_images_found,
    draw_statement,
    of_one_size,
)
from mwa_lightning.tasks.reasoning import ReasoningTask
from mwa_lightning.tasks.retrieval import RetrievalTask
from mwa_lightning.training.loggers.base import LosableLogger, show_drawings

log = logging.getLogger(__name__)

BEST = 5  # candidates that are shown of a query
MOST_MISSED = 5  # right captions that are shown besides

Drawings = dict[str, list[Drawing]]


class Examples(pl.Callback):
    """Draws, at each validation, the same samples anew, from what the metric has gathered: nothing is encoded again.

    Retrieval: `examples/image_to_text` and `examples/text_to_image`, each with `count` queries at even distances in the
    split. Statements: `examples/statements`, as many. Only the first process draws. What goes wrong is warned of once
    and ends the drawing, not the run.

    Args:
        count: How many samples are shown of each kind.
    """

    def __init__(self, *, count: int) -> None:
        self.count = count
        self._given_up = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the metric keep what it gathers."""
        if self._draws(trainer):
            pl_module.val_metric.keep = True  # type: ignore[union-attr]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, and show it to the loggers that take pictures."""
        if not self._draws(trainer):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        try:
            drawings = _drawings(pl_module, data, self.count)
        except Exception as error:
            self._given_up = True
            log.warning("no more examples are drawn (%s); the run goes on", error)
            return
        for name, kind in drawings.items():
            show_drawings(trainer.loggers, f"examples/{name}", of_one_size(kind), step=trainer.global_step - 1)

    def _draws(self, trainer: pl.Trainer) -> bool:
        """Whether this process draws, and there is somebody to look on."""
        looks = any(isinstance(logger, LosableLogger) and not logger.lost for logger in trainer.loggers)
        return looks and trainer.is_global_zero and not self._given_up


def evenly(length: int, count: int) -> list[int]:
    """At most `count` places among `length`, at even distances."""
    count = min(length, count)
    return [length * (2 * number + 1) // (2 * count) for number in range(count)]


def retrieval_drawings(task: RetrievalTask, data: RetrievalDataModule, count: int) -> Drawings:
    """What some images and some captions of the validation split find."""
    embedded = task.val_metric.embedded
    split = data.split("val")
    pictures, captions = split.pictures, split.captions
    if embedded is None or (len(embedded.images), len(embedded.texts)) != (len(pictures), len(captions)):
        return {}  # a part of the split was validated: rows are not places in it
    texts = captions.texts
    ranking = task.ranking
    of_images = []
    for found in captions_found(embedded, evenly(len(pictures), count), k=BEST, ranking=ranking):
        shown = [Shown(texts[row], row in found.right) for row in found.best]
        missed = [texts[row] for row in sorted(found.right.difference(found.best))[:MOST_MISSED]]
        picture = data.picture("val", found.query)
        of_images.append(draw_captions_found(picture, shown, missed=missed, rank=found.rank))
    of_captions = []
    for found in images_found(embedded, evenly(len(captions), count), k=BEST, ranking=ranking):
        seen = [Shown(data.picture("val", row), row in found.right) for row in found.best]
        (right,) = found.right
        of_captions.append(
            draw_images_found(texts[found.query], seen, right=data.picture("val", right), rank=found.rank)
        )
    task.val_metric.embedded = None  # on a GPU it would take room from the training
    return {"image_to_text": of_images, "text_to_image": of_captions}


def statement_drawings(task: ReasoningTask, data: StatementDataModule, count: int) -> Drawings:
    """What is said of some statements of the validation split."""
    classified = task.val_metric.classified
    if classified is None:
        return {}
    statements = data.split("val").statements
    drawings = []
    for row in evenly(len(classified.labels), count):
        statement = statements[int(classified.sample_index[row])]
        shares = classified.logits[row].softmax(dim=0)
        said = int(shares.argmax())
        drawings.append(
            draw_statement(
                [data.picture("val", place) for place in statement.image_index],
                statement.text,
                label=data.classes[statement.label],
                said=data.classes[said],
                share=float(shares[said]),
            )
        )
    return {"statements": drawings}


def _drawings(task: pl.LightningModule, data: Any, count: int) -> Drawings:
    if isinstance(task, RetrievalTask):
        return retrieval_drawings(task, data, count)
    if isinstance(task, ReasoningTask):
        return statement_drawings(task, data, count)
    return {}

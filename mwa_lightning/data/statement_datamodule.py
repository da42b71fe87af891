"""The data of a run on statements about images: visual reasoning and entailment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mwa_lightning.data.base import SplitDataModule
from mwa_lightning.data.loading.datasets import Loader
from mwa_lightning.data.loading.statement_datasets import StatementCollate, StatementDataset, StatementTrainDataset
from mwa_lightning.data.samples.statements import StatementSplit, class_names
from mwa_lightning.errors import ConfigError, counted


class StatementDataModule(SplitDataModule[StatementSplit]):
    """Labelled statements, each about the same number of images.

    Args:
        classes: What labels may say, in the order in which they are numbered; None = as the layout has it,
            for one's own data the sorted labels of the file.
        swap_images: Let the two images change places in every second training sample, and "left" and "right"
            in its statement with them.
        options: What `SplitDataModule` takes.

    Raises:
        ConfigError: A value is out of range.
    """

    split_type = StatementSplit
    smallest_batch = 1

    def __init__(
        self, *, classes: Sequence[str | int] | None = None, swap_images: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.given_classes = class_names(classes)
        self.swap_images = swap_images

    @property
    def classes(self) -> tuple[str, ...]:
        """What the labels say, in the order in which they are numbered; known after `setup`."""
        return next(iter(self._splits.values())).classes

    @property
    def images_a_sample(self) -> int:
        """Number k of images that each statement is about; known after `setup`."""
        return next(iter(self._splits.values())).images_a_sample

    def training_labels(self) -> np.ndarray | None:
        """Places of the right classes of the training statements (n,), None where there is no training split."""
        return self._splits["train"].statements.labels if "train" in self._splits else None

    def train_dataloader(self) -> Loader:
        """Batches of augmented statements (StatementBatch), from the place of a loaded state on.

        Raises:
            ConfigError: Images are to change places, but there are not two.
        """
        if self.swap_images and self.images_a_sample != 2:
            raise ConfigError(
                f"data.swap_images=true: a statement has {counted(self.images_a_sample, 'image')} here, and only two "
                "can change places: set it to false"
            )
        return self._training_loader(StatementTrainDataset, collate=self._collate, swap_images=self.swap_images)

    def evaluation_dataloaders(self, name: str) -> list[Loader]:
        """Every statement of a split once (StatementBatch), in file order."""
        split = self.split(name)
        dataset = StatementDataset(split=split, reader=self._reader, transform=self.transform)
        return [self._loader(name, dataset=dataset, batch_sampler=self._shard(len(split)), collate_fn=self._collate)]

    @property
    def _collate(self) -> StatementCollate:
        return StatementCollate(
            tokenizer=self.tokenizer, image_size=self.transform.image_size, images_a_sample=self.images_a_sample
        )

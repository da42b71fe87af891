"""The data of a retrieval run: images and captions."""

from __future__ import annotations

from typing import Any

from mwa_lightning.data.base import SplitDataModule
from mwa_lightning.data.loading.datasets import (
    ImageCollate,
    ImageDataset,
    Loader,
    TextCollate,
    TextDataset,
    TrainCollate,
    TrainDataset,
)
from mwa_lightning.data.samples.records import RetrievalSplit


class RetrievalDataModule(SplitDataModule[RetrievalSplit]):
    """Images and captions for training and evaluating retrieval.

    Args:
        one_k: Whether the test metric also has the mean over consecutive thousands (for the metric to read).
        options: What `SplitDataModule` takes.

    Raises:
        ConfigError: A value is out of range.
    """

    split_type = RetrievalSplit

    def __init__(self, *, one_k: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.one_k = one_k

    def train_dataloader(self) -> Loader:
        """Batches of augmented image-caption pairs (TrainBatch), from the place of a loaded state on."""
        collate = TrainCollate(tokenizer=self.tokenizer, image_size=self.train_transform.image_size)
        return self._training_loader(TrainDataset, collate=collate)

    def evaluation_dataloaders(self, name: str) -> list[Loader]:
        """Every image of a split once (ImageBatch), then every caption (TextBatch), in file order."""
        split = self.split(name)
        images = self._loader(
            name,
            dataset=ImageDataset(split=split, reader=self._reader, transform=self.transform),
            batch_sampler=self._shard(len(split.pictures)),
            collate_fn=ImageCollate(image_size=self.transform.image_size),
        )
        texts = self._loader(
            name,
            dataset=TextDataset(split=split),
            batch_sampler=self._shard(len(split)),
            collate_fn=TextCollate(tokenizer=self.tokenizer),
            num_workers=0,
        )
        return [images, texts]

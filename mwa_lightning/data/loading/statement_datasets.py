"""Datasets of statements about images, and the making of their batches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mwa_lightning.data.images.reader import ImageReader
from mwa_lightning.data.images.transforms import EvaluationTransform
from mwa_lightning.data.loading.datasets import ReplacingDataset, SampleCollate, stack
from mwa_lightning.data.loading.ledger import BadImage
from mwa_lightning.data.samples.records import Picture
from mwa_lightning.data.samples.statements import StatementBatch, StatementSplit
from mwa_lightning.data.text.tokenizers import Encoded
from mwa_lightning.errors import DataError

_STREAM = 2  # keeps these random numbers apart from those of the epoch's order and of the augmentation
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


class StatementSample(NamedTuple):
    """One statement with its images (k, 3, S, S); an error where they could not be read."""

    images: Tensor | None
    text: str
    label: int
    sample_index: int
    sample_id: str
    bad_images: tuple[BadImage, ...] = ()
    error: str = ""


class StatementTrainDataset(ReplacingDataset[StatementSample]):
    """Statements with their images, each augmented on its own.

    Args:
        split: The images and statements.
        swap_images: Let two images change places in every second sample, a pure function of (seed, epoch,
            sample), and "left" and "right" in its statement with them.
        options: What ReplacingDataset takes, but for the length.
    """

    def __init__(self, *, split: StatementSplit, swap_images: bool, **options: Any) -> None:
        super().__init__(length=len(split), **options)
        self._split = split
        self._swap_images = swap_images

    def _pictures_of(self, index: int) -> Sequence[Picture]:
        return [self._split.pictures[place] for place in self._split.statements[index].image_index]

    def _sample(
        self, index: int, images: Sequence[Tensor], *, epoch: int, bad_images: tuple[BadImage, ...]
    ) -> StatementSample:
        sample = _sample(self._split, index, images)
        if self._swap_images and _heads(seed=self._transform.seed, epoch=epoch, index=index):
            sample = sample._replace(images=torch.stack(list(reversed(images))), text=swap_sides(sample.text))
        return sample._replace(bad_images=bad_images)

    def _lost(self, index: int, *, bad_images: tuple[BadImage, ...], error: str) -> StatementSample:
        return _sample(self._split, index, None)._replace(bad_images=bad_images, error=error)


class StatementDataset(Dataset[StatementSample]):
    """Every statement of a split once, with its images as they are.

    Args:
        split: The images and statements.
        reader: Reads an image file.
        transform: Resizes an image.
    """

    def __init__(self, *, split: StatementSplit, reader: ImageReader, transform: EvaluationTransform) -> None:
        self._split = split
        self._reader = reader
        self._transform = transform

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> StatementSample:
        places = self._split.statements[index].image_index
        try:
            images = [self._transform(self._reader(self._split.pictures[place].path)) for place in places]
        except DataError as error:
            return _sample(self._split, index, None)._replace(error=str(error))
        return _sample(self._split, index, images)


@dataclass(frozen=True, kw_only=True)
class StatementCollate(SampleCollate[StatementSample]):
    """Makes a StatementBatch of samples with `images_a_sample` images each."""

    images_a_sample: int

    def batch(self, samples: Sequence[StatementSample], encoded: Encoded) -> StatementBatch:
        """The batch of sound samples whose statements are encoded."""
        shape = (self.images_a_sample, 3, self.image_size, self.image_size)
        return StatementBatch(
            images=stack([sample.images for sample in samples], *shape),
            ids=encoded.ids,
            mask=encoded.mask,
            labels=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
            sample_index=torch.tensor([sample.sample_index for sample in samples], dtype=torch.int64),
            sample_ids=[sample.sample_id for sample in samples],
        )


def swap_sides(text: str) -> str:
    """The text with the words "left" and "right" exchanged; the case of their first letter stays."""
    return _SIDES.sub(lambda match: _other_side(match.group()), text)


def _other_side(word: str) -> str:
    other = "right" if word.lower() == "left" else "left"
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other


def _heads(*, seed: int, epoch: int, index: int) -> bool:
    """A coin for a sample in an epoch."""
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(_STREAM, epoch, index)))
    return bool(bits.random_raw() >> 63)


def _sample(split: StatementSplit, index: int, images: Sequence[Tensor] | None) -> StatementSample:
    statement = split.statements[index]
    return StatementSample(
        images=None if images is None else torch.stack(list(images)),
        text=statement.text,
        label=statement.label,
        sample_index=index,
        sample_id=statement.identifier,
    )

"""Datasets, and the loader that makes batches of them.

A worker process must not raise: what arrives in the main process then is a page of traceback. So datasets
and collation return what went wrong, and the loader raises it as one line, counts the images that were
replaced and names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mwa_lightning.data.images.reader import ImageReader
from mwa_lightning.data.images.transforms import EvaluationTransform, TrainTransform
from mwa_lightning.data.loading.ledger import BadImage, Ledger, Outcome
from mwa_lightning.data.loading.sampling import GlobalBatchSampler, SampleKey, epoch_order
from mwa_lightning.data.samples.records import ImageBatch, Picture, RetrievalSplit, TextBatch, TrainBatch
from mwa_lightning.data.storage.stores import DamagedShard
from mwa_lightning.data.text.tokenizers import Encoded, Tokenizer
from mwa_lightning.errors import DataError


class Sample(Protocol):
    """What every kind of sample with images and a text says of itself; an error if it is of no use."""

    @property
    def text(self) -> str:
        """The caption or statement."""

    @property
    def bad_images(self) -> tuple[BadImage, ...]:
        """Images that could not be read on the way."""

    @property
    def error(self) -> str:
        """Why it is of no use; empty where it is sound."""


SampleT = TypeVar("SampleT", bound=Sample)


class TrainSample(NamedTuple):
    """One image-caption pair; an error instead of an image where none could be found."""

    image: Tensor | None
    text: str
    image_id: int
    sample_id: str
    bad_images: tuple[BadImage, ...] = ()
    error: str = ""


class ReplacingDataset(Dataset[SampleT], Generic[SampleT]):
    """Augmented samples for training; what they are made of, and how they are made, is up to the kind.

    A sample with an image that cannot be read gives way to the one that comes a global batch later in the
    epoch's order, or the first after it that can be read: the next that are not in the batch themselves. It so
    depends on nothing but the seed, the epoch and the global batch size which sample that is. Damaged shards
    are no such matter: they end the run.

    Args:
        length: Number of samples.
        reader: Reads an image file.
        transform: Augments an image.
        batch_size: Number of samples in a global batch.
        max_bad_images: How many images in a row may be unreadable before the search for another is given up.
    """

    def __init__(
        self,
        *,
        length: int,
        reader: ImageReader,
        transform: TrainTransform,
        batch_size: int,
        max_bad_images: int,
    ) -> None:
        self._length = length
        self._reader = reader
        self._transform = transform
        self._batch_size = batch_size
        self._max_bad_images = max_bad_images

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: SampleKey) -> SampleT:
        bad: dict[str, BadImage] = {}
        for index in self._candidates(key):
            pictures = self._pictures_of(index)
            if any(picture.path in bad for picture in pictures):
                continue
            images = []
            for picture in pictures:
                try:
                    images.append(self._reader(picture.path))
                except DamagedShard as error:
                    return self._lost(key.sample, bad_images=tuple(bad.values()), error=str(error))
                except DataError as error:
                    bad[picture.path] = BadImage(picture.path, str(error))
                    break
            if len(images) == len(pictures):
                tensors = [
                    self._transform(image, epoch=key.epoch, image_id=picture.image_id)
                    for image, picture in zip(images, pictures, strict=True)
                ]
                return self._sample(index, tensors, epoch=key.epoch, bad_images=tuple(bad.values()))
            if len(bad) > self._max_bad_images:
                break
        found = tuple(bad.values())
        return self._lost(key.sample, bad_images=found, error=found[-1].message)

    def _pictures_of(self, index: int) -> Sequence[Picture]:
        raise NotImplementedError

    def _sample(self, index: int, images: Sequence[Tensor], *, epoch: int, bad_images: tuple[BadImage, ...]) -> SampleT:
        raise NotImplementedError

    def _lost(self, index: int, *, bad_images: tuple[BadImage, ...], error: str) -> SampleT:
        """What stands for a sample that nothing could be found for, and why."""
        raise NotImplementedError

    def _candidates(self, key: SampleKey) -> Iterator[int]:
        """The sample asked for, then those that may stand in for it, those of its own batch last."""
        yield key.sample
        order = epoch_order(seed=self._transform.seed, epoch=key.epoch, length=len(self))
        start = key.position - key.position % self._batch_size
        places = [(key.position + self._batch_size + i) % len(self) for i in range(len(self))]
        own = range(start, start + self._batch_size)
        yield from (int(order[place]) for place in places if place not in own)
        yield from (int(order[place]) for place in places if place in own)


class TrainDataset(ReplacingDataset[TrainSample]):
    """Augmented image-caption pairs.

    Args:
        split: The images and captions.
        options: What ReplacingDataset takes, but for the length.
    """

    def __init__(self, *, split: RetrievalSplit, **options: Any) -> None:
        super().__init__(length=len(split), **options)
        self._split = split

    def _pictures_of(self, index: int) -> Sequence[Picture]:
        return [self._split.pictures[self._split.captions[index].image_index]]

    def _sample(
        self, index: int, images: Sequence[Tensor], *, epoch: int, bad_images: tuple[BadImage, ...]
    ) -> TrainSample:
        caption = self._split.captions[index]
        image_id = int(self._split.pictures.image_ids[caption.image_index])
        return TrainSample(images[0], caption.text, image_id, self._split.sample_id(index), bad_images)

    def _lost(self, index: int, *, bad_images: tuple[BadImage, ...], error: str) -> TrainSample:
        return TrainSample(None, "", -1, self._split.sample_id(index), bad_images, error)


class ImageDataset(Dataset["tuple[Tensor | None, int, str]"]):
    """Every image of a split once: its tensor, its place, and an error where it cannot be read."""

    def __init__(self, *, split: RetrievalSplit, reader: ImageReader, transform: EvaluationTransform) -> None:
        self._split = split
        self._reader = reader
        self._transform = transform

    def __len__(self) -> int:
        return len(self._split.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, str]:
        try:
            return self._transform(self._reader(self._split.pictures[index].path)), index, ""
        except DataError as error:
            return None, index, str(error)


class TextDataset(Dataset["tuple[str, int, int]"]):
    """Every caption of a split: its text, its place, and the place of its image."""

    def __init__(self, *, split: RetrievalSplit) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split.captions)

    def __getitem__(self, index: int) -> tuple[str, int, int]:
        caption = self._split.captions[index]
        return caption.text, index, caption.image_index


@dataclass(frozen=True, kw_only=True)
class SampleCollate(Generic[SampleT]):
    """Makes a batch of samples that have a text, or passes on the first error; a rank may have no samples."""

    tokenizer: Tokenizer
    image_size: int

    def __call__(self, samples: Sequence[SampleT]) -> Outcome:
        """The batch, or the first error."""
        bad = tuple(image for sample in samples for image in sample.bad_images)
        error = next((sample.error for sample in samples if sample.error), None)
        if error is not None:
            return Outcome(None, error=error, bad_images=bad)
        try:
            encoded = self.tokenizer.encode([sample.text for sample in samples])
        except DataError as error:
            return Outcome(None, error=str(error), bad_images=bad)
        return Outcome(self.batch(samples, encoded), bad_images=bad, truncated=encoded.truncated)

    def batch(self, samples: Sequence[SampleT], encoded: Encoded) -> Any:
        """The batch of sound samples whose texts are encoded."""
        raise NotImplementedError


class TrainCollate(SampleCollate[TrainSample]):
    """Makes a TrainBatch of samples."""

    def batch(self, samples: Sequence[TrainSample], encoded: Encoded) -> TrainBatch:
        """The batch of sound samples whose captions are encoded."""
        return TrainBatch(
            images=stack([sample.image for sample in samples], 3, self.image_size, self.image_size),
            ids=encoded.ids,
            mask=encoded.mask,
            image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
            sample_ids=[sample.sample_id for sample in samples],
        )


@dataclass(frozen=True, kw_only=True)
class ImageCollate:
    """Makes an ImageBatch."""

    image_size: int

    def __call__(self, samples: Sequence[tuple[Tensor | None, int, str]]) -> Outcome:
        """The batch, or the first error."""
        error = next((message for image, _, message in samples if image is None), None)
        if error is not None:
            return Outcome(None, error=error)
        index = torch.tensor([index for _, index, _ in samples], dtype=torch.int64)
        return Outcome(
            ImageBatch(stack([image for image, _, _ in samples], 3, self.image_size, self.image_size), index)
        )


@dataclass(frozen=True, kw_only=True)
class TextCollate:
    """Makes a TextBatch."""

    tokenizer: Tokenizer

    def __call__(self, samples: Sequence[tuple[str, int, int]]) -> Outcome:
        """The batch, or the first error."""
        try:
            encoded = self.tokenizer.encode([text for text, _, _ in samples])
        except DataError as error:
            return Outcome(None, error=str(error))
        places = torch.tensor([places for _, *places in samples], dtype=torch.int64).view(-1, 2)
        batch = TextBatch(encoded.ids, encoded.mask, places[:, 0].contiguous(), places[:, 1].contiguous())
        return Outcome(batch, truncated=encoded.truncated)


class Loader(DataLoader[Any]):
    """A DataLoader that keeps the ledger, and counts the batches that were used, not those fetched ahead.

    Args:
        ledger: Where outcomes are entered.
        split: The split that is loaded, for the ledger.
        options: What a DataLoader takes.
    """

    def __init__(self, *, ledger: Ledger, split: str, **options: Any) -> None:
        super().__init__(**options)
        self.ledger = ledger
        self.split = split

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        sampler = self.batch_sampler
        place = 0
        if isinstance(sampler, GlobalBatchSampler):
            place = sampler.next_batch if sampler.next_batch < len(sampler) else 0
        for outcome in super().__iter__():
            self.ledger.note(outcome, split=self.split)
            batch = self.shared(outcome.batch, place)
            place += 1
            if isinstance(sampler, GlobalBatchSampler):
                sampler.next_batch = place
            yield batch

    def shared(self, batch: Any, place: int) -> Any:
        """A batch that stands at `place` of an epoch, with what the ranks have of it where it can say so."""
        if isinstance(batch, TrainBatch) and isinstance(self.batch_sampler, GlobalBatchSampler):
            return batch._replace(shares=self.batch_sampler.shares(place))
        return batch


def stack(images: Sequence[Tensor | None], *shape: int) -> Tensor:
    """Images uint8 (b, *shape), also of none."""
    present = [image for image in images if image is not None]
    return torch.stack(present) if present else torch.empty(0, *shape, dtype=torch.uint8)

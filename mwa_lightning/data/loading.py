"""Datasets, and the loader that makes batches of them.

A worker process must not raise: what arrives in the main process then is a page of traceback. So datasets
and collation return what went wrong, and the loader raises it as one line, counts the images that were
replaced and names them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mwa_lightning.data.images import ImageReader
from mwa_lightning.data.records import ImageBatch, RetrievalSplit, TextBatch, TrainBatch
from mwa_lightning.data.sampling import GlobalBatchSampler, SampleKey, epoch_order
from mwa_lightning.data.tokenizers import SentencePieceTokenizer
from mwa_lightning.data.transforms import EvaluationTransform, TrainTransform
from mwa_lightning.errors import DataError

logger = logging.getLogger(__name__)


class BadImage(NamedTuple):
    """An image that cannot be read: its path, and the line for people."""

    path: str
    message: str


class Outcome(NamedTuple):
    """What a worker hands over: a batch or an error, images it could not read, how many captions it cut."""

    batch: Any
    error: str | None = None
    bad_images: tuple[BadImage, ...] = ()
    truncated: int = 0


class TrainSample(NamedTuple):
    """One image-caption pair; without an image where none could be found."""

    image: Tensor | None
    text: str
    image_id: int
    sample_id: str
    bad_images: tuple[BadImage, ...] = ()


class TrainDataset(Dataset[TrainSample]):
    """Augmented image-caption pairs.

    A pair whose image cannot be read gives way to the one that comes a global batch later in the epoch's
    order, or the first after it that can be read: the next that are not in the batch themselves. It so
    depends on nothing but the seed, the epoch and the global batch size which pair that is.

    Args:
        split: The images and captions.
        reader: Reads an image file.
        transform: Augments an image.
        batch_size: Number of samples in a global batch.
        max_bad_images: How many images in a row may be unreadable before the search for another is given up.
    """

    def __init__(
        self,
        *,
        split: RetrievalSplit,
        reader: ImageReader,
        transform: TrainTransform,
        batch_size: int,
        max_bad_images: int,
    ) -> None:
        self._split = split
        self._reader = reader
        self._transform = transform
        self._batch_size = batch_size
        self._max_bad_images = max_bad_images

    def __len__(self) -> int:
        return len(self._split.captions)

    def __getitem__(self, key: SampleKey) -> TrainSample:
        bad: dict[str, BadImage] = {}
        for index in self._candidates(key):
            caption = self._split.captions[index]
            picture = self._split.pictures[caption.image_index]
            if picture.path in bad:
                continue
            try:
                image = self._reader(picture.path)
            except DataError as error:
                bad[picture.path] = BadImage(picture.path, str(error))
                if len(bad) > self._max_bad_images:
                    break
                continue
            return TrainSample(
                image=self._transform(image, epoch=key.epoch, image_id=picture.image_id),
                text=caption.text,
                image_id=picture.image_id,
                sample_id=self._split.sample_id(index),
                bad_images=tuple(bad.values()),
            )
        return TrainSample(None, "", -1, self._split.sample_id(key.caption), tuple(bad.values()))

    def _candidates(self, key: SampleKey) -> Iterator[int]:
        """The sample asked for, then those that may stand in for it, those of its own batch last."""
        yield key.caption
        order = epoch_order(seed=self._transform.seed, epoch=key.epoch, length=len(self))
        start = key.position - key.position % self._batch_size
        places = [(key.position + self._batch_size + i) % len(self) for i in range(len(self))]
        own = range(start, start + self._batch_size)
        yield from (int(order[place]) for place in places if place not in own)
        yield from (int(order[place]) for place in places if place in own)


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
class TrainCollate:
    """Makes a TrainBatch of samples; a rank may have none."""

    tokenizer: SentencePieceTokenizer
    image_size: int

    def __call__(self, samples: Sequence[TrainSample]) -> Outcome:
        """The batch, or the first error."""
        bad = tuple(image for sample in samples for image in sample.bad_images)
        lost = next((sample for sample in samples if sample.image is None), None)
        if lost is not None:
            return Outcome(None, error=lost.bad_images[-1].message, bad_images=bad)
        try:
            encoded = self.tokenizer.encode([sample.text for sample in samples])
        except DataError as error:
            return Outcome(None, error=str(error), bad_images=bad)
        batch = TrainBatch(
            images=_stack([sample.image for sample in samples], self.image_size),
            ids=encoded.ids,
            mask=encoded.mask,
            image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
            sample_ids=[sample.sample_id for sample in samples],
        )
        return Outcome(batch, bad_images=bad, truncated=encoded.truncated)


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
        return Outcome(ImageBatch(_stack([image for image, _, _ in samples], self.image_size), index))


@dataclass(frozen=True, kw_only=True)
class TextCollate:
    """Makes a TextBatch."""

    tokenizer: SentencePieceTokenizer

    def __call__(self, samples: Sequence[tuple[str, int, int]]) -> Outcome:
        """The batch, or the first error."""
        try:
            encoded = self.tokenizer.encode([text for text, _, _ in samples])
        except DataError as error:
            return Outcome(None, error=str(error))
        places = torch.tensor([places for _, *places in samples], dtype=torch.int64).view(-1, 2)
        batch = TextBatch(encoded.ids, encoded.mask, places[:, 0].contiguous(), places[:, 1].contiguous())
        return Outcome(batch, truncated=encoded.truncated)


@dataclass(kw_only=True)
class Ledger:
    """Keeps count, over a whole run of one process, of what was not used as it is.

    Args:
        max_bad_images: How many images may be unreadable.
        tokenizer: Whose count of cut captions is kept.
    """

    max_bad_images: int
    tokenizer: SentencePieceTokenizer
    bad_images: dict[str, str] = field(default_factory=dict)

    def note(self, outcome: Outcome) -> None:
        """Enter what a worker reports.

        Raises:
            DataError: There is no batch, or more images are unreadable than may be.
        """
        new = {path: message for path, message in outcome.bad_images if path not in self.bad_images}
        self.bad_images.update(new)
        count = len(self.bad_images)
        if count > self.max_bad_images:
            message = next(iter(new.values()), outcome.error)
            raise DataError(
                f"{message} ({count} unreadable, data.max_bad_images={self.max_bad_images}: mwa-prepare "
                "check=true lists all)"
            )
        for message in new.values():
            logger.warning("replaced by the next sample: %s (%d so far)", message, count)
        if outcome.error is not None:
            raise DataError(outcome.error)
        self.tokenizer.note_truncated(outcome.truncated)


class Loader(DataLoader[Any]):
    """A DataLoader that keeps the ledger, and counts the batches that were used, not those fetched ahead.

    Args:
        ledger: Where outcomes are entered.
        options: What a DataLoader takes.
    """

    def __init__(self, *, ledger: Ledger, **options: Any) -> None:
        super().__init__(**options)
        self.ledger = ledger

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        sampler = self.batch_sampler
        place = 0
        if isinstance(sampler, GlobalBatchSampler):
            place = sampler.next_batch if sampler.next_batch < len(sampler) else 0
        for outcome in super().__iter__():
            self.ledger.note(outcome)
            place += 1
            if isinstance(sampler, GlobalBatchSampler):
                sampler.next_batch = place
            yield outcome.batch


def _stack(images: Sequence[Tensor | None], image_size: int) -> Tensor:
    """Images uint8 (b, 3, S, S), also of none."""
    present = [image for image in images if image is not None]
    return torch.stack(present) if present else torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)

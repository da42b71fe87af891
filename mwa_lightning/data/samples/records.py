"""What a retrieval data set is in memory, and the batches that leave the loaders.

Annotations of 600,000 captions are kept as a few arrays and one buffer of text, not as a million Python
objects: they load in seconds, cost tens of megabytes and are shared, not copied, by worker processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

ItemT = TypeVar("ItemT")


class Picture(NamedTuple):
    """One image: its file, its number (unique over the data set) and its name in the annotations."""

    path: str
    image_id: int
    name: str


class Caption(NamedTuple):
    """One caption: its text, its number, and the place of its image in the split."""

    text: str
    caption_id: int
    image_index: int


class TrainBatch(NamedTuple):
    """Image-caption pairs: images uint8 (b, 3, S, S), ids and mask (b, n), image_ids (b,), and names.

    `shares` says how many pairs of the global batch each process has, by rank; None where nobody has said.
    """

    images: Tensor
    ids: Tensor
    mask: Tensor
    image_ids: Tensor
    sample_ids: list[str]
    shares: tuple[int, ...] | None = None


class ImageBatch(NamedTuple):
    """Images of a split in file order: uint8 (b, 3, S, S), and their places in the split (b,)."""

    images: Tensor
    image_index: Tensor


class TextBatch(NamedTuple):
    """Captions of a split in file order: ids and mask (b, n), their places and those of their images (b,)."""

    ids: Tensor
    mask: Tensor
    text_index: Tensor
    image_index: Tensor


class Items(Sequence[ItemT]):
    """A read-only list whose entries are made when they are asked for, by `_at`."""

    @overload
    def __getitem__(self, index: int) -> ItemT: ...
    @overload
    def __getitem__(self, index: slice) -> list[ItemT]: ...
    def __getitem__(self, index: int | slice) -> ItemT | list[ItemT]:
        if isinstance(index, slice):
            return [self._at(place) for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"index {index} of {len(self)} entries")
        return self._at(place)

    def _at(self, place: int) -> ItemT:
        raise NotImplementedError


class Strings(Items[str]):
    """A read-only list of strings in one buffer.

    Args:
        texts: The strings. Halves of surrogate pairs, which no encoding can carry, become question marks.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "replace") for text in texts]
        self._buffer = b"".join(encoded)
        self._ends = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))

    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """The strings one after another in UTF-8, uint8, and where each ends, int64."""
        return np.frombuffer(self._buffer, dtype=np.uint8), self._ends

    @classmethod
    def unpacked(cls, buffer: np.ndarray, ends: np.ndarray) -> Strings:
        """The strings that were packed so."""
        strings = cls(())
        strings._buffer, strings._ends = buffer.tobytes(), ends
        return strings

    def __len__(self) -> int:
        return len(self._ends)

    def _at(self, place: int) -> str:
        start = int(self._ends[place - 1]) if place else 0
        return self._buffer[start : int(self._ends[place])].decode("utf-8")


class Pictures(Items[Picture]):
    """The images of a split, in file order.

    Args:
        folder: What the paths are relative to.
        paths: Path of each image, relative to `folder` or absolute.
        names: Name of each image in the annotations.
        image_ids: Number of each image.
        labels: What the annotations call each image, where they do not number them themselves.
    """

    def __init__(
        self,
        *,
        folder: PurePath | str,
        paths: Iterable[str],
        names: Iterable[str],
        image_ids: Iterable[int],
        labels: Iterable[str] | None = None,
    ) -> None:
        self.folder = PurePath(folder)
        self.paths = Strings(paths)
        self.names = Strings(names)
        self.image_ids = np.fromiter(image_ids, dtype=np.int64)
        self.labels = None if labels is None else Strings(labels)
        assert len(self.paths) == len(self.names) == len(self.image_ids)
        assert self.labels is None or len(self.labels) == len(self.image_ids)

    def first(self, count: int) -> Pictures:
        """The first so many of them."""
        return Pictures(
            folder=self.folder,
            paths=self.paths[:count],
            names=self.names[:count],
            image_ids=self.image_ids[:count].tolist(),
            labels=None if self.labels is None else self.labels[:count],
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def _at(self, place: int) -> Picture:
        path = str(self.folder / self.paths[place])
        return Picture(path=path, image_id=int(self.image_ids[place]), name=self.names[place])


class Captions(Items[Caption]):
    """The captions of a split, in file order.

    Args:
        texts: The captions.
        caption_ids: Number of each caption.
        image_index: Place of its image in the split.
    """

    def __init__(self, *, texts: Iterable[str], caption_ids: Iterable[int], image_index: Iterable[int]) -> None:
        self.texts = Strings(texts)
        self.caption_ids = np.fromiter(caption_ids, dtype=np.int64)
        self.image_index = np.fromiter(image_index, dtype=np.int64)
        assert len(self.texts) == len(self.caption_ids) == len(self.image_index)

    def __len__(self) -> int:
        return len(self.image_index)

    def _at(self, place: int) -> Caption:
        return Caption(
            text=self.texts[place],
            caption_id=int(self.caption_ids[place]),
            image_index=int(self.image_index[place]),
        )


class PictureGatherer:
    """Gathers the images of a split; a path that comes up again is the same image."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._names: list[str] = []
        self._image_ids: list[int] = []
        self._labels: list[str] = []

    def add(self, *, path: str, name: str, image_id: int, label: str | None = None) -> int:
        """Place in the split of the image at `path`, whose name, number and label are those given first."""
        place = self._places.setdefault(path, len(self._places))
        if place == len(self._names):
            self._names.append(name)
            self._image_ids.append(image_id)
            if label is not None:
                self._labels.append(label)
        return place

    def build(self, folder: PurePath | str) -> Pictures:
        """The images that were added; their paths are relative to `folder`."""
        return Pictures(
            folder=folder,
            paths=self._places,
            names=self._names,
            image_ids=self._image_ids,
            labels=self._labels or None,
        )


@dataclass(frozen=True, kw_only=True)
class RetrievalSplit:
    """One part of a data set: its images and its captions, both in file order."""

    samples_are: ClassVar[str] = "captions"

    name: str
    pictures: Pictures
    captions: Captions

    def __len__(self) -> int:
        """Number of samples of an epoch: the captions, each with its image."""
        return len(self.captions)

    @property
    def texts(self) -> Strings:
        """The captions, in file order."""
        return self.captions.texts

    def first(self, count: int) -> RetrievalSplit:
        """The first so many images, with their captions."""
        places = np.flatnonzero(self.captions.image_index < count).tolist()
        captions = Captions(
            texts=[self.captions.texts[place] for place in places],
            caption_ids=self.captions.caption_ids[places].tolist(),
            image_index=self.captions.image_index[places].tolist(),
        )
        return RetrievalSplit(name=self.name, pictures=self.pictures.first(count), captions=captions)

    def sample_id(self, caption_index: int) -> str:
        """Name of an image-caption pair for people, as in `COCO_val2014_000000391895.jpg#770337`."""
        picture = self.pictures.names[int(self.captions.image_index[caption_index])]
        return f"{picture}#{int(self.captions.caption_ids[caption_index])}"


class SplitBuilder:
    """Gathers a split caption by caption; an image that comes up again is the same image.

    Args:
        name: Name of the split.
        folder: What the paths are relative to.
    """

    def __init__(self, *, name: str, folder: PurePath | str) -> None:
        self._name = name
        self._folder = folder
        self._pictures = PictureGatherer()
        self._texts: list[str] = []
        self._caption_ids: list[int] = []
        self._image_index: list[int] = []

    def add(self, *, path: str, name: str, image_id: int, text: str, caption_id: int, label: str | None = None) -> None:
        """Add one caption of the image at `path`, whose name, number and label are those given first.

        A data set labels all of its images, or numbers all of them.
        """
        self._image_index.append(self._pictures.add(path=path, name=name, image_id=image_id, label=label))
        self._texts.append(text)
        self._caption_ids.append(caption_id)

    def build(self) -> RetrievalSplit:
        """The split with all that was added."""
        captions = Captions(texts=self._texts, caption_ids=self._caption_ids, image_index=self._image_index)
        return RetrievalSplit(name=self._name, pictures=self._pictures.build(self._folder), captions=captions)

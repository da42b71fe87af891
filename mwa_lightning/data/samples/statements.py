"""What a data set of statements about images is in memory, and the batches that leave its loaders.

As with captions, 530,000 statements are a few arrays and buffers, not a million Python objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from mwa_lightning.data.samples.records import Items, PictureGatherer, Pictures, Strings
from mwa_lightning.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class Statement(NamedTuple):
    """One sample: its text, its name, the place of its class, and the places of its images in the split."""

    text: str
    identifier: str
    label: int
    image_index: tuple[int, ...]


class StatementBatch(NamedTuple):
    """Statements about k images each.

    `images` is uint8 (b, k, 3, S, S), `ids` and `mask` are (b, n), `labels` are places among the classes (b,),
    `sample_index` the samples' places in the split (b,), and `sample_ids` their names.
    """

    images: Tensor
    ids: Tensor
    mask: Tensor
    labels: Tensor
    sample_index: Tensor
    sample_ids: list[str]


class Statements(Items[Statement]):
    """The statements of a split, in file order.

    Args:
        texts: The statements.
        identifiers: Name of each.
        labels: Place of its class.
        image_index: Places of its images in the split, k for each.
    """

    def __init__(
        self,
        *,
        texts: Iterable[str],
        identifiers: Iterable[str],
        labels: Iterable[int],
        image_index: Sequence[Sequence[int]],
    ) -> None:
        self.texts = Strings(texts)
        self.identifiers = Strings(identifiers)
        self.labels = np.fromiter(labels, dtype=np.int64)
        self.image_index = np.array(image_index, dtype=np.int64)
        assert len(self.texts) == len(self.identifiers) == len(self.labels) == len(self.image_index)

    def __len__(self) -> int:
        return len(self.labels)

    def _at(self, place: int) -> Statement:
        return Statement(
            text=self.texts[place],
            identifier=self.identifiers[place],
            label=int(self.labels[place]),
            image_index=tuple(self.image_index[place].tolist()),
        )


@dataclass(frozen=True, kw_only=True)
class StatementSplit:
    """One part of a data set: its images and its statements, both in file order.

    Args:
        name: Name of the split.
        pictures: The images.
        statements: The statements, each about k of the images.
        classes: What the labels say, in the order in which they are numbered.
        groups: Number of the sentence that each statement is an instance of (n,), for the consistency; None
            where the layout does not tell.
        subsets: For each named subset, whether a statement belongs to it (n,).
    """

    samples_are: ClassVar[str] = "statements"

    name: str
    pictures: Pictures
    statements: Statements
    classes: tuple[str, ...]
    groups: np.ndarray | None = None
    subsets: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.statements)

    @property
    def texts(self) -> Strings:
        """The statements, in file order."""
        return self.statements.texts

    def first(self, count: int) -> StatementSplit:
        """The first so many statements."""
        own = self.statements
        statements = Statements(
            texts=own.texts[:count],
            identifiers=own.identifiers[:count],
            labels=own.labels[:count].tolist(),
            image_index=own.image_index[:count].tolist(),
        )
        return replace(
            self,
            statements=statements,
            groups=None if self.groups is None else self.groups[:count],
            subsets={name: members[:count] for name, members in self.subsets.items()},
        )

    @property
    def images_a_sample(self) -> int:
        """Number k of images that each statement is about."""
        return int(self.statements.image_index.shape[1])

    def sample_id(self, index: int) -> str:
        """Name of a statement for people."""
        return self.statements.identifiers[index]


def class_names(classes: Sequence[str | int] | None) -> tuple[str, ...] | None:
    """The names of classes as labels have them.

    Raises:
        ConfigError: There are fewer than two, or one comes twice.
    """
    if classes is None:
        return None
    names = tuple(str(name) for name in classes)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"data.classes=[{','.join(names)}]: name two classes or more, each of them once")
    return names


class StatementBuilder:
    """Gathers a split statement by statement.

    Args:
        name: Name of the split.
        folder: What the paths are relative to.
        classes: What the labels say, in order.
    """

    def __init__(self, *, name: str, folder: PurePath | str, classes: Sequence[str]) -> None:
        self._name = name
        self._folder = folder
        self._classes = tuple(classes)
        self._pictures = PictureGatherer()
        self._texts: list[str] = []
        self._identifiers: list[str] = []
        self._labels: list[int] = []
        self._image_index: list[list[int]] = []
        self._groups: list[int | None] = []

    def add(
        self,
        *,
        images: Sequence[tuple[str, int]],
        text: str,
        identifier: str,
        label: int,
        group: int | None = None,
    ) -> None:
        """Add one statement about images, each given by its path and its number in the data set."""
        places = [self._pictures.add(path=path, name=PurePath(path).name, image_id=number) for path, number in images]
        self._image_index.append(places)
        self._texts.append(text)
        self._identifiers.append(identifier)
        self._labels.append(label)
        self._groups.append(group)

    def build(self, subsets: Mapping[str, Iterable[str]] | None = None) -> StatementSplit:
        """The split with all that was added; `subsets` lists the identifiers of each."""
        statements = Statements(
            texts=self._texts, identifiers=self._identifiers, labels=self._labels, image_index=self._image_index
        )
        grouped = None not in self._groups
        members = {name: frozenset(identifiers) for name, identifiers in (subsets or {}).items()}
        return StatementSplit(
            name=self._name,
            pictures=self._pictures.build(self._folder),
            statements=statements,
            classes=self._classes,
            groups=np.array(self._groups, dtype=np.int64) if grouped else None,
            subsets={
                name: np.array([identifier in inside for identifier in self._identifiers], dtype=bool)
                for name, inside in members.items()
            },
        )

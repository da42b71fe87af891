"""Whether a training split can teach anything, and whether what is measured later was not in it."""

from __future__ import annotations

import numpy as np

from mwa_lightning.data.samples.identity import spread
from mwa_lightning.data.samples.records import RetrievalSplit
from mwa_lightning.data.samples.statements import StatementSplit
from mwa_lightning.data.storage.stores import PictureStore
from mwa_lightning.errors import DataError

AnySplit = RetrievalSplit | StatementSplit


def check_learnable(split: AnySplit) -> None:
    """Raise DataError if all captions of a training split are of one image or one text, all statements of one class.

    One statement about many images is a question that can be learned.
    """
    if len(split) < 2:
        return  # the sampler says so
    first = split.texts[0]
    of_one_view = not isinstance(split, StatementSplit) or len(np.unique(split.statements.image_index, axis=0)) < 2
    if of_one_view and all(text == first for text in split.texts):
        raise DataError(
            f"split {split.name}: all {len(split):,} {split.samples_are} are {first[:80]!r}: there is nothing "
            "to learn from one text; give others"
        )
    if isinstance(split, StatementSplit):
        labels = np.unique(split.statements.labels)
        if len(labels) < 2:
            raise DataError(
                f"split {split.name}: all {len(split):,} statements are labelled {split.classes[int(labels[0])]!r}: "
                "there is nothing to learn from one class; give statements of other classes too"
            )
    elif len(np.unique(split.captions.image_index)) < 2:
        raise DataError(
            f"split {split.name}: all {len(split):,} captions are of one image, {split.pictures.names[0]}: there are "
            "no negatives to learn from; give captions of other images too"
        )


def check_images_differ(split: AnySplit, store: PictureStore) -> None:
    """Raise DataError if all images of a training split of captions have the same bytes; 64 of a large one are read."""
    if isinstance(split, StatementSplit) or len(split.pictures) < 2:
        return
    first: bytes | None = None
    for place in spread(len(split.pictures)):
        try:
            with store.open(split.pictures[place].path) as file:
                content = file.read()
        except (OSError, DataError):
            return  # told where it is used
        if first is not None and content != first:
            return
        first = content
    count = len(split.pictures)
    compared = len(spread(count))
    which = (
        f"its {count:,} images" if compared == count else f"the {compared} of its {count:,} images that were compared"
    )
    raise DataError(
        f"split {split.name}: {which} have the same content, that of {split.pictures.names[0]}: there are no negatives "
        "to learn from; give different images"
    )


def shared_images(train: AnySplit, other: AnySplit) -> int:
    """How many images of a split are, by their paths, in the training split too."""
    return len(_paths(train) & _paths(other))


def _paths(split: AnySplit) -> set[str]:
    return set(split.pictures.paths)

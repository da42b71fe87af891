"""Whether a training split can teach anything, and whether what is measured later was not in it."""

from __future__ import annotations

import numpy as np

from mwa_lightning.data.records import RetrievalSplit
from mwa_lightning.data.statements import StatementSplit
from mwa_lightning.errors import DataError

AnySplit = RetrievalSplit | StatementSplit


def check_learnable(split: AnySplit) -> None:
    """Raise DataError if all samples of a training split have one image, one text or one class."""
    if len(split) < 2:
        return  # the sampler says so
    first = split.texts[0]
    if all(text == first for text in split.texts):
        raise DataError(
            f"split {split.name}: all {len(split):,} {split.samples_are} are {first!r}: there is nothing to "
            "learn from one text; give others"
        )
    if isinstance(split, StatementSplit):
        labels = np.unique(split.statements.labels)
        if len(labels) < 2:
            raise DataError(
                f"split {split.name}: all {len(split):,} statements are labelled {split.classes[int(labels[0])]!r}: "
                "there is nothing to learn from one class; give statements of others"
            )
    elif len(np.unique(split.captions.image_index)) < 2:
        raise DataError(
            f"split {split.name}: all {len(split):,} captions are of one image, {split.pictures.names[0]}: there are "
            "no negatives to learn from; give captions of other images"
        )


def shared_images(train: AnySplit, other: AnySplit) -> int:
    """How many images of a split are, by their paths, in the training split too."""
    return len(_paths(train) & _paths(other))


def _paths(split: AnySplit) -> set[str]:
    return set(split.pictures.paths)

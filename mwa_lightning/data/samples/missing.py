"""Rows whose pictures are missing are left out, where the user said how many may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.samples.records import Captions, Pictures, RetrievalSplit
from mwa_lightning.data.samples.statements import Statements, StatementSplit
from mwa_lightning.data.storage.stores import PictureStore

AnySplit = RetrievalSplit | StatementSplit


def leave_out_missing(
    splits: Mapping[str, AnySplit], *, store: PictureStore, problems: Problems
) -> Mapping[str, AnySplit]:
    """The splits without the rows that `problems` lets go because a picture of theirs is missing.

    Args:
        splits: The splits of a data set.
        store: What holds their pictures.
        problems: Where each such row is reported, which raises or keeps a problem if there are too many.
    """
    if not problems.skip_rows:
        return splits
    return {
        name: left
        for name, split in splits.items()
        if (left := _without(split, store, problems) if name == "train" or problems.skip_in_evaluation else split)
    }


def _without(split: AnySplit, store: PictureStore, problems: Problems) -> AnySplit | None:
    """A split without the rows whose pictures are missing; None if none is left."""
    there = np.array([store.size(picture.path) is not None for picture in split.pictures], dtype=bool)
    rows = split.captions if isinstance(split, RetrievalSplit) else split.statements
    index = rows.image_index.reshape(len(rows), -1)  # (n, k)
    usable = there[index].all(axis=1)
    for place in np.flatnonzero(~usable):
        image = split.pictures[int(index[place][~there[index[place]]][0])]
        said = f"image {store.describe(image.path)} of {split.sample_id(int(place))} is missing: put the file there"
        problems.bad_row("missing image", said, split=split.name)
    if usable.all():
        return split
    kept = np.flatnonzero(usable)
    if not len(kept):
        return None
    images = np.unique(index[kept])
    places = np.full(len(there), -1)
    places[images] = np.arange(len(images))
    pictures = _of(split.pictures, images)
    texts = [split.texts[int(place)] for place in kept]
    if isinstance(split, RetrievalSplit):
        captions = Captions(
            texts=texts, caption_ids=split.captions.caption_ids[kept], image_index=places[index[kept, 0]]
        )
        return replace(split, pictures=pictures, captions=captions)
    statements = Statements(
        texts=texts,
        identifiers=[split.statements.identifiers[int(place)] for place in kept],
        labels=split.statements.labels[kept],
        image_index=places[index[kept]].tolist(),
    )
    return replace(
        split,
        pictures=pictures,
        statements=statements,
        groups=None if split.groups is None else split.groups[kept],
        subsets={name: members[kept] for name, members in split.subsets.items()},
    )


def _of(pictures: Pictures, places: np.ndarray) -> Pictures:
    """Some of the pictures, in their order."""
    return Pictures(
        folder=pictures.folder,
        paths=[pictures.paths[int(place)] for place in places],
        names=[pictures.names[int(place)] for place in places],
        image_ids=pictures.image_ids[places],
        labels=None if pictures.labels is None else [pictures.labels[int(place)] for place in places],
    )

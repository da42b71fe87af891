"""What tells one data set from another, wherever it lies: a hash over its samples and over some of its images."""

from __future__ import annotations

import hashlib
from pathlib import PurePath
from typing import TypedDict

import numpy as np

from mwa_lightning.data.samples.records import RetrievalSplit
from mwa_lightning.data.samples.statements import StatementSplit
from mwa_lightning.data.storage.stores import PictureStore
from mwa_lightning.data.text.tokenizers import Tokenizer
from mwa_lightning.errors import DataError

# How many images of a split are read, and texts tokenized: a data set may have 120,000 on a slow disk.
_LOOKED_AT = 64


class SplitIdentity(TypedDict):
    """How many images and samples a split has, and the SHA-256 of what they are."""

    images: int
    samples: int
    sha256: str


def split_identity(split: RetrievalSplit | StatementSplit, store: PictureStore) -> SplitIdentity:
    """The identity of a split; the folder in which it lies, or shards made of it, do not change it.

    Counted in are the names of the images, the texts, which belong together, labels and classes, and the bytes of 64
    images spread evenly over the split. An image that cannot be read counts as none.
    """
    digest = hashlib.sha256()
    for name in split.pictures.names:
        digest.update(PurePath(name).name.encode() + b"\n")
    buffer, ends = split.texts.packed()
    arrays = [buffer, ends]
    if isinstance(split, StatementSplit):
        arrays += [split.statements.image_index, split.statements.labels]
        digest.update("\n".join(split.classes).encode())
    else:
        arrays.append(split.captions.image_index)
    for array in arrays:
        digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).data)
    for place in spread(len(split.pictures)):
        try:
            with store.open(split.pictures[place].path) as file:
                digest.update(hashlib.sha256(file.read()).digest())
        except (OSError, DataError):
            digest.update(b"unreadable")
    return {"images": len(split.pictures), "samples": len(split), "sha256": digest.hexdigest()}


def tokenizer_identity(tokenizer: Tokenizer, split: RetrievalSplit | StatementSplit) -> str:
    """The SHA-256 of the ids of 64 texts of a split; a tokenizer may be a file, a folder or from a hub."""
    texts = [split.texts[place] for place in spread(len(split))]
    return hashlib.sha256(repr(tokenizer.pieces(texts)).encode()).hexdigest()


def spread(count: int) -> list[int]:
    """Up to 64 places of `count`, evenly spread."""
    return sorted({int(place) for place in np.linspace(0, count - 1, num=min(count, _LOOKED_AT))})

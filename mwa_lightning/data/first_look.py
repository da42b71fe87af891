"""What is looked at before a run: that texts have tokens, that images are there, that training can teach something."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from mwa_lightning.data.images.reader import ImageReader
from mwa_lightning.data.samples.learnable import AnySplit, check_images_differ, check_learnable, shared_images
from mwa_lightning.data.storage.stores import PictureStore
from mwa_lightning.data.text.tokenizers import Tokenizer
from mwa_lightning.errors import DataError, counted

logger = logging.getLogger(__name__)

_CHECKED_FILES = 2000  # how many images of a split are looked at; slow disks have 120,000


def look_at_training(train: AnySplit, splits: Iterable[AnySplit], store: PictureStore) -> None:
    """Refuse a training split that teaches nothing; warn of images that are evaluated and trained on.

    Raises:
        DataError: All samples have one image, one text or one class.
    """
    check_learnable(train)
    check_images_differ(train, store)
    for split in splits:
        if split.name != train.name and (count := shared_images(train, split)):
            logger.warning(
                "split %s: %s of %s also in the train split, so its metrics will be too high: give each image to one "
                "split only (mwa-prepare check=true lists them)",
                split.name,
                f"{count:,}",
                f"{counted(len(split.pictures), 'image')} {'is' if count == 1 else 'are'}",
            )


def look_at_texts(split: AnySplit, tokenizer: Tokenizer) -> None:
    """Raise DataError for a text of which the tokenizer leaves nothing; one with a letter or a digit is none."""
    for place, text in enumerate(split.texts):
        if not any(map(str.isalnum, text)) and not tokenizer.pieces([text])[0]:
            raise DataError(
                f"split {split.name}: the text of {split.sample_id(place)}, {text!r}, has no tokens: write some "
                "words, or leave it out"
            )


def look_at_images(split: AnySplit, reader: ImageReader, *, decode: bool, allowed: int) -> None:
    """Look whether files are there and not empty, or decode them: all of a small split, some of a large one.

    Evaluation drops none, and one that does not decode is better found before hours of training than after.

    Raises:
        DataError: More than `allowed` are missing or empty, or one does not decode.
    """
    count = len(split.pictures)
    for place in np.unique(np.linspace(0, count - 1, num=min(count, _CHECKED_FILES)).astype(int)):
        path = split.pictures[int(place)].path
        if decode:
            reader(path)
            continue
        if not reader.store.size(path):
            allowed -= 1
        if allowed < 0:
            reader(path)  # says what is wrong

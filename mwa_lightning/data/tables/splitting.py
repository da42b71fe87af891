"""Which part of a table of one's own a sample belongs to: as the table says, or by a hash of its images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from mwa_lightning.data.files.problems import Problems

_NAMES = {
    "train": ("train", "training", "trn", "trainset", "trainsplit", "restval"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development", "eval", "evaluation", "minival"),
    "test": ("test", "testing", "tst", "testset", "testsplit"),
}
SPLITS = {name: split for split, names in _NAMES.items() for name in names}

_VAL_FROM, _TEST_FROM = 0.90, 0.95


def split_named(name: Any) -> str | None:
    """The split of that name, in whatever case, and with a year as in `val2014`; None if there is none."""
    return _split_of_word(name) if isinstance(name, str) else None


@lru_cache(maxsize=1024)  # a table has the same few a million times
def _split_of_word(name: str) -> str | None:
    word = re.sub(r"[\W_]+", "", name).lower()
    return SPLITS.get(word) or SPLITS.get(re.sub(r"20\d\d$", "", word))


def hash_share(path: str) -> float:
    """Where an image stands between 0 and 1 by the hash of its path as the table gives it."""
    digest = hashlib.sha256(PurePath(path).as_posix().encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def hash_split(path: str) -> str:
    """The split of an image by its hash alone."""
    share = hash_share(path)
    return "train" if share < _VAL_FROM else "val" if share < _TEST_FROM else "test"


def split_by_hash(paths: Iterable[str]) -> dict[str, str]:
    """The split of each path: 90 % train, 5 % val, 5 % test, so that others which are added move none.

    Where a part of a small table came out empty, it gets the path whose hash is nearest.
    """
    ordered = sorted(paths, key=lambda path: (hash_share(path), path))
    shares = [hash_share(path) for path in ordered]
    count = len(ordered)
    test = max(sum(share >= _TEST_FROM for share in shares), 1)
    test = max(min(test, count - 2), 0)
    val = max(sum(_VAL_FROM <= share < _TEST_FROM for share in shares), 1)
    val = max(min(val, count - test - 1), 0)
    names = ["train"] * (count - val - test) + ["val"] * val + ["test"] * test
    return dict(zip(ordered, names, strict=True))


def share_of_train(paths: Iterable[str], share: float) -> set[str]:
    """The images of train that become val: those whose hashes are highest, at least one, and not all."""
    ordered = sorted(paths, key=lambda path: (hash_share(path), path))
    count = sum(hash_share(path) >= 1 - share for path in ordered)
    return set(ordered[len(ordered) - max(min(max(count, 1), len(ordered) - 1), 0) :])


def assign_splits(
    rows: Sequence[tuple[str, Any, str]], problems: Problems, *, val_share: float | None = None
) -> list[str | None]:
    """The split of each row; None where it lacks the one that others have.

    Args:
        rows: Place for messages, name of the split (None where the table gives none) and image of each row.
        problems: Where a row without the split that others have is reported.
        val_share: How much of train becomes val, by a hash of its images; None = there is a val.
    """
    if all(split is None for _, split, _ in rows):
        if val_share is not None and rows:
            problems.add(
                "val_share", "data.val_share: without splits, 5 % of the images are val already: set it to null"
            )
        by_hash = split_by_hash({image for _, _, image in rows})
        return [by_hash[image] for _, _, image in rows]
    splits = [split_named(split) for _, split, _ in rows]
    if val_share is not None and "val" in splits:
        problems.add("val_share", "data.val_share: the annotations have a val split of their own: set it to null")
    elif val_share is not None:
        train = {image for (_, _, image), split in zip(rows, splits, strict=True) if split == "train"}
        val = share_of_train(train, val_share)
        pairs = zip(rows, splits, strict=True)
        splits = ["val" if split == "train" and image in val else split for (_, _, image), split in pairs]
    for where, split, _ in rows:
        if split is None:
            problems.bad_row("unusable entry", f"{where} lacks the split that others have: add it")
    return splits

"""Which part of a table of one's own a sample belongs to: as the table says, or by a hash of its images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from mwa_lightning.data.problems import Problems

SPLITS = {"train": "train", "restval": "train", "val": "val", "validation": "val", "dev": "val", "test": "test"}

_VAL_FROM, _TEST_FROM = 0.90, 0.95


def hash_share(path: str) -> float:
    """Where an image stands between 0 and 1 by the hash of its path as the table gives it."""
    digest = hashlib.sha256(PurePath(path).as_posix().encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


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


def assign_splits(rows: Sequence[tuple[int, Any, str]], annotations: Path, problems: Problems) -> list[str | None]:
    """The split of each row; None where it lacks the one that others have.

    Args:
        rows: Line, split (one of SPLITS, or None where the table gives none) and image of each row.
        annotations: The table, for messages.
        problems: Where a row without the split that others have is reported.
    """
    if all(split is None for _, split, _ in rows):
        by_hash = split_by_hash({image for _, _, image in rows})
        return [by_hash[image] for _, _, image in rows]
    for line, split, _ in rows:
        if split is None:
            problems.add("unusable entry", f"{annotations}: line {line} lacks the split that others have")
    return [SPLITS.get(str(split)) for _, split, _ in rows]

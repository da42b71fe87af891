"""Lists of the pictures of each split, in text files beside a table, as Flickr8k has them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.files.text_files import encoding_of, text_lines
from mwa_lightning.data.tables.table_files import split_lists
from mwa_lightning.errors import counted


def listed_splits(images: Collection[str], table: Path, problems: Problems) -> dict[str, str] | None:
    """The split of each image that a list names; None where there are no lists, or they name others.

    Args:
        images: The paths of the images in the table.
        table: The table, beside which the lists lie.
        problems: Where it is told that lists are used, and how many images they leave out.
    """
    by_name: dict[str, str] = {}
    for path in images:
        for name in (PurePosixPath(path).stem, PurePosixPath(path).name, path):
            by_name[name] = path
    splits: dict[str, str] = {}
    lists = split_lists(table)
    for file, split, _ in lists:
        encoding = encoding_of(file, problems)
        names = [line.text.strip() for line in text_lines(file, encoding, problems)] if encoding is not None else []
        names = [name for name in names if name]
        found = [by_name[name] for name in names if name in by_name]
        if 2 * len(found) < len(names) or not names:
            return None
        splits.update(dict.fromkeys(found, split or ""))
    if not splits:
        return None
    left_out = len(set(images)) - len(splits)
    files = ", ".join(each.file.name for each in lists)
    problems.note(
        f"{table} has no split: those of {files} are taken"
        + (f"; left out {counted(left_out, 'image')} in none of them" if left_out else "")
    )
    return splits

"""Pictures with their captions in a text of the same name beside them: `a.jpg` and `a.txt`, a caption a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePath
from typing import NamedTuple

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.files.text_files import encoding_of, text_lines
from mwa_lightning.data.tables.splitting import split_named
from mwa_lightning.errors import counted
from mwa_lightning.system.regular_files import read_file

PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"))

_LOOKED_AT = 1000  # in a folder of a million pictures
_TEXT_SUFFIXES = (".txt", ".caption")


class Captioned(NamedTuple):
    """A picture by its path from the folder on, where its captions stand, and these."""

    path: str
    where: str
    captions: list[str]
    split: str | None


def has_text_beside(folder: Path) -> bool:
    """Whether some of the first pictures in a folder, or in those in it, have a text beside them."""
    return any(_text_of(folder / path) is not None for path in islice(_pictures(folder), _LOOKED_AT))


def read_text_beside(folder: Path, problems: Problems) -> Iterator[Captioned]:
    """The pictures with their captions, sorted by path; those without a text are left out and counted.

    The split is that of the topmost folder, if all of these are called as splits are.
    """
    pictures = list(_pictures(folder))
    tops = {PurePath(path).parts[0] if len(PurePath(path).parts) > 1 else "" for path in pictures}
    by_folder = len(tops) > 1 and all(map(split_named, tops))
    without = 0
    for path in pictures:
        text = _text_of(folder / path)
        if text is None:
            without += 1
            continue
        split = split_named(PurePath(path).parts[0]) if by_folder else None
        yield Captioned(path, str(text), _captions(text, problems), split)
    problems.took(
        f"{folder}: captions in texts beside the images, one in each line"
        + (", split by folder" if by_folder else ", no split")
    )
    if without:
        problems.note(f"{folder}: left out {counted(without, 'image')} without a text beside")


def _pictures(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and not name.startswith("."):  # noqa: PTH122
                yield os.path.relpath(os.path.join(place, name), folder)  # noqa: PTH118


def _text_of(picture: Path) -> Path | None:
    for suffix in (*_TEXT_SUFFIXES, ".json"):
        if (text := picture.with_suffix(suffix)).is_file():
            return text
    return None


def _captions(file: Path, problems: Problems) -> list[str]:
    if file.suffix == ".json":  # as img2dataset writes them
        try:
            record = json.loads(read_file(file))
        except (ValueError, RecursionError):
            return []
        caption = record.get("caption") if isinstance(record, dict) else None
        return [caption] if isinstance(caption, str) else []
    encoding = encoding_of(file, problems)
    if encoding is None:
        return []
    return [line.text.strip() for line in text_lines(file, encoding, problems) if line.text.strip()]

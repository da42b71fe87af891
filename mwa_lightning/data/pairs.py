"""A plain table of pictures and captions: CSV, TSV or JSONL, one caption a line."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from mwa_lightning.data import lines
from mwa_lightning.data.lines import read_lines
from mwa_lightning.data.problems import Problems, has_words
from mwa_lightning.data.records import RetrievalSplit, SplitBuilder
from mwa_lightning.data.splitting import SPLITS, assign_splits
from mwa_lightning.regular_files import read_file

SUFFIXES = (".csv", ".tsv", *lines.SUFFIXES)

_PATH_NAMES = ("image", "image_path", "filename", "file_name", "filepath", "file", "path")
_CAPTION_NAMES = ("caption", "text", "sentence", "title")


class _Row(NamedTuple):
    line: int
    path: Any
    caption: Any
    split: Any  # None where the table has no such column


def read_pairs(annotations: Path, *, folder: PurePath, problems: Problems) -> dict[str, RetrievalSplit]:
    """The splits of a table; several lines with one path are captions of one image.

    Without a split column, 90 % of the images go to train, 5 % to val and 5 % to test by a hash of their
    path, so an image stays where it is when others are added. Where a part of a small table came out empty,
    it gets the image whose hash is nearest.

    Args:
        annotations: The table. A CSV may open with a header (image, caption and optionally split, in any
            order); without one, these are its columns. A JSONL has an object with these keys a line.
        folder: What the paths are relative to.
        problems: Where a damaged table, or a row that cannot be used, is reported.
    """
    rows = [row for row in _rows(annotations, problems) if _usable(row, annotations, problems)]
    if not rows and not problems.found:
        problems.add("no images", f"{annotations} lists no pictures: write a line of image and caption for each")
    places = [(row.line, row.split, os.path.normpath(row.path)) for row in rows]
    splits = assign_splits(places, annotations, problems)
    builders: dict[str, SplitBuilder] = {}
    image_ids: dict[str, int] = {}
    for caption_id, (row, split) in enumerate(zip(rows, splits, strict=True)):
        if split is not None:
            path = os.path.normpath(row.path)
            builder = builders.setdefault(split, SplitBuilder(name=split, folder=folder))
            image_id = image_ids.setdefault(path, len(image_ids))
            builder.add(path=path, name=path, image_id=image_id, text=row.caption, caption_id=caption_id, label=path)
    return {name: builder.build() for name, builder in builders.items()}


def _usable(row: _Row, annotations: Path, problems: Problems) -> bool:
    where = f"{annotations}: line {row.line}"
    if not isinstance(row.path, str) or not row.path.strip():
        problems.add("unusable entry", f"{where} lacks the path of an image: add it")
    elif not isinstance(row.caption, str):
        problems.add("unusable entry", f"{where} ({row.path}) lacks a caption: add it")
    elif not has_words(row.caption):
        problems.add(
            "caption without words",
            f"{where} ({row.path}): the caption has no words ({row.caption!r}): write it out, or leave it out",
        )
    elif row.split is not None and str(row.split) not in SPLITS:
        problems.add(
            "unusable entry",
            f"{where} ({row.path}) is of the split {row.split!r}: write train, val or test (a caption with a "
            "comma in it needs quotes)",
        )
    else:
        return True
    return False


def _rows(annotations: Path, problems: Problems) -> Iterator[_Row]:
    suffix = annotations.suffix.lower()
    if suffix in lines.SUFFIXES:
        yield from _json_rows(annotations, problems)
        return
    if suffix not in SUFFIXES:
        problems.add("unknown format", f"{annotations} is no table: name it {', '.join(SUFFIXES)} by its format")
        return
    try:
        text = read_file(annotations).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add("not UTF-8", f"{annotations} is not UTF-8 (byte {error.start}): save it as UTF-8")
        return
    yield from _table_rows(text, annotations, problems, delimiter="\t" if suffix == ".tsv" else ",")


def _json_rows(annotations: Path, problems: Problems) -> Iterator[_Row]:
    for line, record, _ in read_lines(annotations, wanted="image and caption", problems=problems):
        yield _Row(line, _first(record, _PATH_NAMES), _first(record, _CAPTION_NAMES), record.get("split"))


def _table_rows(text: str, annotations: Path, problems: Problems, *, delimiter: str) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: dict[str, int] | None = None
    width = 0
    try:
        for cells in reader:
            line = reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns, is_header = _columns(cells)
                width = len(cells) if is_header or len(cells) == 2 else 3
                if is_header:
                    continue
            if len(cells) != width:
                problems.add(
                    "unusable entry",
                    f"{annotations}: line {line} has {len(cells)} cells where {width} are wanted: image, "
                    "caption and optionally split (a caption with a comma in it needs quotes)",
                )
                continue
            split = cells[columns["split"]].strip() if "split" in columns else None
            yield _Row(line, cells[columns["image"]].strip(), cells[columns["caption"]], split)
    except csv.Error as error:
        problems.add("not CSV", f"{annotations}: line {reader.line_num} is not CSV ({error}): correct it")


def _columns(cells: list[str]) -> tuple[dict[str, int], bool]:
    """Place of each column, and whether the first line is a header that says so."""
    header = {cell.strip().lower(): i for i, cell in reversed(list(enumerate(cells)))}
    path, caption = _first(header, _PATH_NAMES), _first(header, _CAPTION_NAMES)
    if path is None or caption is None:
        return {"image": 0, "caption": 1, **({"split": 2} if len(cells) > 2 else {})}, False
    split = {"split": header["split"]} if "split" in header else {}
    return {"image": path, "caption": caption, **split}, True


def _first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if name in record), None)

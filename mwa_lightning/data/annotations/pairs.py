"""Tables of pictures and captions of whatever kind: a row has one caption, or several, and perhaps a split."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from mwa_lightning.data.files.json_lines import Line
from mwa_lightning.data.files.problems import Problems, has_words
from mwa_lightning.data.samples.records import RetrievalSplit, SplitBuilder
from mwa_lightning.data.storage.stores import PictureStore
from mwa_lightning.data.tables.columns import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    KNOWN,
    Columns,
    find_columns,
    is_address,
    value_in,
)
from mwa_lightning.data.tables.delimited import folded
from mwa_lightning.data.tables.rows import open_table
from mwa_lightning.data.tables.split_lists import listed_splits
from mwa_lightning.data.tables.splitting import assign_splits, hash_split, split_named
from mwa_lightning.data.tables.table_files import TableFile, siblings
from mwa_lightning.data.tables.text_beside import read_text_beside
from mwa_lightning.errors import shorten
from mwa_lightning.system.shell_words import item, typed

_WANTED = "image and caption"
_LOOKED_AT = 100  # rows that tell which column is which
_NUMBERED = re.compile(r"(.+\.\w{1,5})#\d{1,3}")  # Flickr8k's and Flickr30k's name.jpg#0
_LONGEST_LIST = 1_000_000
_UNPARTED = re.compile(r"(['\"])\s+(['\"])")


@dataclass(frozen=True)
class _Entry:
    """A picture and its captions, as one row has them; `wrong` are the kind and the line of what is wrong with it."""

    where: str
    path: str
    captions: list[str]
    split: str | None
    wrong: list[tuple[str, str]]


def read_pairs(
    tables: Sequence[TableFile],
    *,
    store: PictureStore,
    problems: Problems,
    columns: Mapping[str, Any] | None = None,
    val_share: float | None = None,
) -> dict[str, RetrievalSplit]:
    """The splits of one or more tables; rows with one path are captions of one image.

    The split is that of the table where it has one, else what its column says, else what lists of pictures beside it
    say. Where nothing does, 90 % of the images go to train, 5 % to val and 5 % to test by a hash of their path, so an
    image stays where it is when others are added. Where a part of a small table came out empty, it gets the image
    whose hash is nearest.

    Args:
        tables: The tables, with the split of each where it has one.
        store: What holds the images.
        problems: Where a damaged table, or a row that cannot be used, is reported.
        columns: Which columns hold what, where the user says.
        val_share: How much of train becomes val, where there is none.
    """
    alone = len(tables) == 1  # then a column says more than its name
    entries = [entry for table in tables for entry in _entries(table, store, columns, problems, alone=alone)]
    if not entries and not problems.found:
        files = ", ".join(str(table.file) for table in tables)
        problems.add("no images", f"no images are listed in {files}: write a row of image and caption for each")
    entries = _with_lists(entries, tables, problems)
    usable = [entry for entry in entries if entry.captions]
    places = [(entry.where, entry.split, entry.path) for entry in usable]
    splits = assign_splits(places, problems, val_share=val_share)
    if usable and all(entry.split is None for entry in usable):
        _note_split_by_hash(tables, store, problems)
    split_of = {entry.path: split for entry, split in zip(usable, splits, strict=True) if split is not None}
    for entry in entries:
        for kind, message in entry.wrong:
            of = split_named(entry.split) or split_of.get(entry.path) or hash_split(entry.path)
            problems.bad_row(kind, message, split=of)
    builders: dict[str, SplitBuilder] = {}
    image_ids: dict[str, int] = {}
    caption_id = 0
    for entry, split in zip(usable, splits, strict=True):
        if split is None:
            continue
        for text in entry.captions:
            builder = builders.setdefault(split, SplitBuilder(name=split, folder=store.prefix))
            image_id = image_ids.setdefault(entry.path, len(image_ids))
            path = entry.path
            builder.add(path=path, name=path, image_id=image_id, text=text, caption_id=caption_id, label=path)
            caption_id += 1
    return {name: builders[name].build() for name in ("train", "val", "test") if name in builders}


def _note_split_by_hash(tables: Sequence[TableFile], store: PictureStore, problems: Problems) -> None:
    problems.took("split by a hash of the images' paths: 90 % train, 5 % val, 5 % test")
    beside = siblings(tables[0].file) if len(tables) == 1 and tables[0].file.is_file() else []
    if len(beside) > 1:
        root = store.data_root or tables[0].file.parent
        names = ",".join(item(os.path.relpath(file, root)) for file in beside)
        problems.note(
            f"{tables[0].file} is split by a hash of its images; not used: {shorten(_others(tables[0], beside))} "
            f"beside it. If these are the splits, give {typed('data.root', root)} "
            f"{shlex.quote(f'data.annotations=[{names}]')}"
        )


def _others(table: TableFile, beside: Sequence[Path]) -> list[str]:
    return [file.name for file in beside if file != table.file]


def _entries(
    table: TableFile, store: PictureStore, columns: Mapping[str, Any] | None, problems: Problems, *, alone: bool
) -> Iterator[_Entry]:
    """The rows of a table; what is wrong with one is in it, to be told when its split is known."""
    if table.file.is_dir():
        for path, where, captions, split in read_text_beside(table.file, problems):
            missing = f"{where} has no caption: write one, or remove this file"
            empty = [] if captions else [("caption without words", missing)]
            yield _entry(where, path, captions, split, empty)
        return
    problems.split = table.split
    opened = open_table(table.file, wanted=_WANTED, known=KNOWN, problems=problems)
    if opened is None:
        return
    start = list(islice(opened.rows, _LOOKED_AT))
    if not start:
        return

    def is_picture(cell: str) -> bool:
        return store.size(str(store.prefix / table.prefix / _path(cell))) is not None

    found = find_columns(opened, start, given=columns, is_picture=is_picture, problems=problems)
    if found is None:
        return
    if alone and found.split is not None:
        table = table._replace(split=None)
        problems.split = None
    unused = [name for name in opened.columns if name not in (found.image, *found.captions, found.split)]
    parts = [opened.read_as, f"{_described(found, opened.has_header)}, {_splits_from(table, found)}"]
    parts += [f"not used: {shorten(unused, 8)}"] if unused else []
    problems.took(f"{table.file}: {'; '.join(parts)}")
    for row in chain(start, opened.rows):
        yield from _of_row(row, found, table, problems)
    problems.split = None


def _of_row(row: Line, columns: Columns, table: TableFile, problems: Problems) -> Iterator[_Entry]:
    path = _image(value_in(row.record, columns.image, IMAGE_NAMES))
    split, named = table.split, row.record.get(columns.split) if columns.split is not None else None
    in_row = split_named(str(named))
    if path is None:
        wanted = f"{row.where} lacks the path of an image ({columns.image}): add it"
        problems.bad_row("unusable entry", wanted, split=split or in_row)
        return
    where = f"{row.where} ({path})"
    if is_address(path):
        address = f"{where} is an address, which is not fetched: download the image, and name its file"
        problems.bad_row("address", address, split=split or in_row)
        return
    wrong: list[tuple[str, str]] = []
    if str(named or "").strip():
        if in_row is None:
            problems.bad_row("unusable entry", f"{where} is of the split {str(named)!r}: write train, val or test")
            return
        if split is not None and in_row != split:
            problems.bad_row(
                "unusable entry", f"{where} is of the split {str(named)!r} in the table of {split}: correct it"
            )
            return
        split = in_row
    try:
        several = columns.captions if columns.captions[0] in row.record else columns.captions[:1]
        captions = [text for column in several for text in _texts(value_in(row.record, column, CAPTION_NAMES))]
    except _NoList as error:
        wrong.append(("unusable entry", f"{where} {error}"))
        captions = []
    if not captions and not wrong:
        wrong.append(("caption without words", f"{where} lacks a caption: add it, or leave the row out"))
    path = f"{table.prefix}/{_path(path)}" if table.prefix and not path.startswith("/") else _path(path)
    yield _entry(where, path, captions, split, wrong)


def _entry(where: str, path: str, captions: list[str], split: str | None, wrong: list[tuple[str, str]]) -> _Entry:
    worded = []
    for text in captions:
        if has_words(text):
            worded.append(text)
            continue
        said = f"{where}: the caption has no words ({text[:40]!r}): write some, or leave it out"
        wrong.append(("caption without words", said))
    return _Entry(where, os.path.normpath(path), worded, split, wrong)


class _NoList(ValueError):  # noqa: N818 (what a cell is)
    """A cell reads like a list of captions and is none."""


def _texts(value: Any) -> list[str]:
    """The captions in a cell: one, or several as a list, whose entries may be objects such as {"raw": ...}."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("[") and text.endswith("]") and (several := _list_in(text)) is not None:
            return several
        return [value] if text else []
    if isinstance(value, Mapping):
        name = next((key for name in CAPTION_NAMES for key in value if folded(str(key)) == name), None)
        return [] if name is None else _texts(value[name])
    if isinstance(value, list | tuple):
        return [text for each in value for text in _texts(each)]
    return []


def _list_in(text: str) -> list[str] | None:
    """The captions of a list in JSON or in Python's form; None where the text is none, but a caption in brackets."""
    if len(text) > _LONGEST_LIST:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
        if _UNPARTED.search(text):
            raise _NoList("has a list of captions without commas between them: write it as JSON") from None
    if not isinstance(value, list | tuple) or not all(isinstance(each, str | dict) for each in value):
        return None
    return _texts(list(value))


def _image(value: Any) -> str | None:
    """The path of the picture in a cell; None if there is none."""
    if isinstance(value, Mapping):  # {"path": ..., "bytes": ...}
        value = value.get("path")
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value.strip() if isinstance(value, str) and value.strip() else None


def _path(cell: str) -> str:
    """The path in a cell, without the number of the caption that Flickr8k's files have after it."""
    cell = cell.strip()
    if cell.startswith("file://"):
        cell = unquote(cell.removeprefix("file://"))
    numbered = _NUMBERED.fullmatch(cell)
    return numbered[1] if numbered else cell


def _described(columns: Columns, has_header: bool) -> str:
    name = repr if has_header else str
    what = "" if has_header else "column "
    captions = ", ".join(map(name, columns.captions))
    return f"images in {what}{name(columns.image)}, captions in {what}{captions}"


def _splits_from(table: TableFile, columns: Columns) -> str:
    if columns.split is not None:
        return f"splits in {columns.split!r}"
    return f"all of {table.split}" if table.split is not None else "no column of splits"


def _with_lists(entries: list[_Entry], tables: Sequence[TableFile], problems: Problems) -> list[_Entry]:
    """The entries with the splits that lists of pictures, or their folders, give them where no table does."""
    if not entries or any(entry.split is not None for entry in entries):
        return entries
    listed = listed_splits({entry.path for entry in entries}, tables[0].file, problems)
    if listed is None:
        tops = {entry.path: PurePosixPath(entry.path).parts[0] for entry in entries if "/" in entry.path}
        named = {path: split_named(top) for path, top in tops.items()}
        if len(tops) < len({entry.path for entry in entries}) or None in named.values() or len(set(named.values())) < 2:
            return entries
        folders = ", ".join(sorted(set(tops.values())))
        problems.note(
            f"{tables[0].file} has no split: each image is of the split that its folder is named after ({folders})"
        )
        listed = {path: split for path, split in named.items() if split is not None}
    return [replace(entry, split=listed[entry.path]) for entry in entries if entry.path in listed]

"""One's own labelled statements about images, in a table of any kind."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple, cast

from mwa_lightning.data.annotations.statement_reader import StatementReader
from mwa_lightning.data.files.json_lines import Line
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.samples.found_by_name import find_by_name
from mwa_lightning.data.samples.labels import Classes, classes_of, label_text
from mwa_lightning.data.samples.statements import StatementSplit
from mwa_lightning.data.storage.stores import PictureStore
from mwa_lightning.data.tables.columns import is_address
from mwa_lightning.data.tables.delimited import folded
from mwa_lightning.data.tables.rows import open_table
from mwa_lightning.data.tables.splitting import assign_splits, split_named
from mwa_lightning.data.tables.statement_columns import FLICKR, WANTED, Columns, find_columns, known_names
from mwa_lightning.data.tables.table_files import TableFile
from mwa_lightning.errors import counted, shorten

_MOST_OWN_LABELS = 20  # statements that may each have a label of their own


class _Row(NamedTuple):
    line: Line
    identifier: str
    images: list[str]
    text: Any
    label: str
    split: str | None
    image_columns: tuple[str, ...]


def read_statements(
    tables: Sequence[TableFile],
    *,
    store: PictureStore,
    problems: Problems,
    classes: Sequence[str] | None = None,
    columns: Mapping[str, Any] | None = None,
    val_share: float | None = None,
) -> dict[str, StatementSplit]:
    """The splits of one's own statements.

    A row holds `image` (a path), or `images` (a list of them) or a column for each, the same number in every row,
    `text`, `label`, and where wanted `split` and `identifier`; other usual names are known. Without a split, 90 % of
    the samples go to train, 5 % to val and 5 % to test by a hash of their images' paths: the statements about the same
    images stay together. Photographs of Flickr30K, which SNLI-VE's columns number, are found by their names.

    Args:
        tables: The tables, with the split of each where it has one.
        store: What holds the images.
        problems: Where a damaged file, or a row that cannot be used, is reported.
        classes: What labels may say, in the order in which they are numbered; None = the labels of the file,
            sorted (by value where all are whole numbers).
        columns: The columns of image, text, label, split and identifier, where they have other names.
        val_share: How much of train becomes val, where there is none.
    """
    rows: list[_Row] = []
    image_columns: set[str] = set()
    for table in tables:
        problems.split = table.split
        for row in _rows(table, columns or {}, problems):
            image_columns.update(row.image_columns)
            if rows and len(row.images) != len(rows[0].images):
                problems.bad_row(
                    "another number of images",
                    f"{row.line.where} has {counted(len(row.images), 'image')}, {rows[0].line.where} has "
                    f"{len(rows[0].images)}: give every sample the same number",
                    split=row.split,
                )
            else:
                rows.append(row)
    problems.split = None
    files = shorten(str(table.file) for table in tables)
    if not rows and not problems.found:
        problems.add("no statements", f"no statements are listed in {files}: write {WANTED} of each")
    names = Classes(classes) if classes is not None else _classes(rows, files, problems)
    reader = StatementReader(folder=store.prefix, classes=names.names, problems=problems, official=False)
    places = [(row.line.where, row.split, "\n".join(sorted(row.images))) for row in rows]
    for row, split in zip(rows, assign_splits(places, problems, val_share=val_share), strict=True):
        if split is None:
            continue
        reader.add(
            row.line,
            split=split,
            identifier=row.identifier,
            text=row.text,
            label=names.of(row.label),
            images=row.images,
        )
    splits = reader.build()
    if any(folded(column) in FLICKR for column in image_columns):
        return cast(dict[str, StatementSplit], find_by_name(splits, store=store, problems=problems))
    return splits


def _rows(table: TableFile, given: Mapping[str, Any], problems: Problems) -> Iterator[_Row]:
    """The rows of a table that have images, a label and a split that is known, if they say one."""
    if table.file.is_dir():
        problems.add("no statements", f"{table.file} holds no table of statements: write {WANTED} of each")
        return
    opened = open_table(table.file, wanted=WANTED, known=known_names(given), problems=problems)
    columns = None if opened is None else find_columns(opened, given, problems)
    if opened is None or columns is None:
        return
    problems.took(f"{table.file}: {opened.read_as}; {columns.described()}")
    for line in opened.rows:
        said = None if columns.split is None else line.record.get(columns.split)
        split = table.split
        if str("" if said is None else said).strip():
            split = split_named(said)
            if split is None or table.split not in (None, split):
                problems.bad_row(
                    "unusable entry",
                    f"{line.where} is of the split {said!r}: write {table.split or 'train, val or test'}",
                )
                continue
        images, label = _images(line, columns, split, problems), _label(line, columns, split, problems)
        if images is None or label is None:
            continue
        own = None if columns.identifier is None else line.record.get(columns.identifier)
        yield _Row(
            line=line,
            identifier=f"{table.file.stem}-{line.number}" if own in (None, "") else str(own),
            images=[os.path.normpath(PurePath(table.prefix) / path) for path in images],
            text=line.record.get(columns.text),
            label=label,
            split=split,
            image_columns=columns.images,
        )


def _images(line: Line, columns: Columns, split: str | None, problems: Problems) -> list[str] | None:
    given: list[Any] = [line.record.get(column) for column in columns.images]
    if given == [None] and columns.one_image is not None:
        given = [line.record.get(columns.one_image)]
    if len(given) == 1:
        given = _listed(given[0])
    if folded(columns.images[0]) in FLICKR:
        given = [f"{str(image).removesuffix('.jpg')}.jpg" if isinstance(image, str | int) else image for image in given]
    if given and all(isinstance(path, str) and path.strip() for path in given):
        if any(map(is_address, given)):
            problems.add(
                "addresses",
                f"{line.where}: {columns.images[0]!r} holds addresses, which are not fetched: download the images, "
                "and give a table of the files",
            )
            return None
        return [path.strip() for path in given]
    problems.bad_row(
        "unusable entry", f"{line.where} lacks the path of an image ({', '.join(columns.images)}): add it", split=split
    )
    return None


def _listed(cell: Any) -> list[Any]:
    """The images of a cell: a path, a list of them, or such a list as JSON and as pandas write it into a table."""
    if isinstance(cell, list):
        return cell
    if isinstance(cell, str) and cell.strip().startswith("["):
        for reads in (json.loads, ast.literal_eval):
            try:
                value = reads(cell.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(value, list):
                return value
    return [cell]


def _label(line: Line, columns: Columns, split: str | None, problems: Problems) -> str | None:
    value = line.record.get(columns.label)
    try:
        label = label_text(value)
    except ValueError:
        wrong = f"{line.where} has the label {str(value)[:40]}, which is neither a word nor a whole number: correct it"
        problems.bad_row("unusable entry", wrong, split=split)
        return None
    if label is None:
        wrong = f"{line.where} lacks a label ({columns.label}): add it, or leave the row out"
        problems.bad_row("no label", wrong, split=split)
    return label


def _classes(rows: Sequence[_Row], files: str, problems: Problems) -> Classes:
    """The labels that occur."""
    spellings = {row.label for row in rows}
    classes = classes_of(sorted(spellings))
    if rows and len(classes.names) < 2:
        problems.add(
            "one class",
            f"the only label in {files} is {shorten(map(repr, classes.names))}: give statements of two classes or "
            "more, or name the classes in data.classes",
        )
    if len(classes.names) > max(_MOST_OWN_LABELS, len(rows) // 2):
        problems.add(
            "labels of their own",
            f"{files}: {len(rows):,} rows have {len(classes.names):,} different labels, too many for classes: name the "
            "column of labels, 'data.columns={label: NAME}'",
        )
    merged = sorted(spelling for spelling in spellings if classes.of(spelling) != spelling)
    words = [spelling for spelling in merged if not spelling.replace(".", "").isdecimal()]
    if words:
        problems.note(f"{files}: the label {words[0]!r} counts as {classes.of(words[0])!r}, whatever its case")
    return classes

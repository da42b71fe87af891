"""Tables of any kind as rows: CSV and its kin, JSON, JSONL, Parquet, Arrow and Excel, known by what is in them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mwa_lightning.data.files.json_lines import SUFFIXES as LINE_SUFFIXES
from mwa_lightning.data.files.json_lines import Line, read_lines
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.files.text_files import Encoding, encoding_of, first_letter, text_lines
from mwa_lightning.data.tables.binary_tables import foreign, is_binary, open_binary
from mwa_lightning.data.tables.delimited import DELIMITERS, Cells, folded, names_picture, read_delimited
from mwa_lightning.data.tables.json_tables import json_records

SUFFIXES = (".csv", ".tsv", ".tab", ".psv", ".txt", ".jsonl", ".ndjson", ".json")
BINARY_SUFFIXES = (".parquet", ".arrow", ".feather", ".xlsx")

_LOOKED_AT = 100  # rows that tell whether the first one is a header


@dataclass(frozen=True)
class Table:
    """A table and its rows, one at a time, each with its place for messages.

    `columns` are the names of the header, or numbers from 1 where `has_header` says that there is none; a row has
    them as keys. `read_as` says for people how the file was understood. `bytes_columns` are those of a Parquet or Arrow
    file that hold bytes, such as pictures; rows lack them.
    """

    file: Path
    read_as: str
    columns: tuple[str, ...]
    has_header: bool
    rows: Iterator[Line]
    bytes_columns: tuple[str, ...] = ()


def open_table(
    file: Path, *, wanted: str, known: Iterable[str], problems: Problems, header: bool | None = None
) -> Table | None:
    """Find out what a table is; None where it is none that can be read, which is reported.

    Broken rows are reported when they come up, and left out.

    Args:
        file: The table.
        wanted: What a row should hold, for messages.
        known: Names that columns may have; case, blanks and underscores do not matter.
        problems: Where a damaged table and its broken rows are reported.
        header: Whether the first row is a header; None = it is one if it reads like one.
    """
    names = frozenset(map(folded, known))
    if (what := foreign(file)) is not None:
        problems.add("unknown format", f"{file} is {what}")
        return None
    if is_binary(file):
        return _binary(file, names, header, problems)
    encoding = encoding_of(file, problems)
    if encoding is None:
        return None
    if (first := first_letter(file, encoding)) in ("[", "{"):
        return _json(file, first, encoding, wanted, names, problems)
    table = read_delimited(file, text_lines(file, encoding, problems), known=names, problems=problems)
    if table is None:
        return None
    parted = DELIMITERS.get(table.delimiter, repr(table.delimiter))
    return _of_cells(file, f"columns separated by {parted}, {encoding.name}", table.rows, names, header, "line")


def read_rows(file: Path, *, wanted: str, known: Iterable[str], problems: Problems) -> Iterator[Line]:
    """The rows of a table; none where it is none that can be read, which is reported (see `open_table`)."""
    table = open_table(file, wanted=wanted, known=known, problems=problems)
    return iter(()) if table is None else table.rows


def _of_cells(
    file: Path, read_as: str, rows: Iterator[Cells], known: Collection[str], header: bool | None, unit: str
) -> Table:
    """The table of rows of cells, of which the first may be a header."""
    start = list(islice(rows, _LOOKED_AT))
    width = len(start[0].cells) if start else 0
    columns = tuple(str(place) for place in range(1, width + 1))
    has_header = bool(start) and (_is_header(start, known) if header is None else header)
    if has_header:
        columns = tuple(name or number for name, number in zip(start.pop(0).cells, columns, strict=True))
    places: dict[str, int] = {}
    for place, name in enumerate(columns):
        places.setdefault(name, place)
    records = (
        Line(number, {name: cells[place] for name, place in places.items()}, f"{file}: {unit} {number}")
        for number, cells in chain(start, rows)
    )
    return Table(file, read_as if has_header else f"{read_as}, no header", columns, has_header, records)


def _is_header(rows: list[Cells], known: Collection[str]) -> bool:
    """Whether the first row names columns: by names that are known, or because the others look otherwise."""
    first = rows[0].cells
    if any(map(names_picture, first)):
        return False
    columns = [[row.cells[place] for row in rows[1:]] for place in range(len(first))]
    for looks in (names_picture, str.isdecimal):
        for cell, column in zip(first, columns, strict=True):
            if column and 2 * sum(map(looks, column)) > len(column):
                return not looks(cell)
    return any(folded(cell) in known for cell in first)


def _json(file: Path, first: str, encoding: Encoding, wanted: str, known: Collection[str], problems: Problems) -> Table:
    """A JSON, or a JSONL if an object is a line whatever its name is."""
    by_lines = first == "{" and _is_by_lines(file, encoding)
    if by_lines:
        rows = read_lines(file, wanted=wanted, problems=problems)
    else:
        rows = json_records(file, encoding, wanted=wanted, known=known, problems=problems)
    start = list(islice(rows, _LOOKED_AT))
    columns = tuple(dict.fromkeys(key for row in start for key in row.record))
    return Table(file, f"{'JSONL' if by_lines else 'JSON'}, {encoding.name}", columns, True, chain(start, rows))


def _is_by_lines(file: Path, encoding: Encoding) -> bool:
    named_so = file.suffix.lower() in LINE_SUFFIXES
    lines = text_lines(file, encoding, Problems(collect=True))  # what is wrong is reported when they are read
    start = [line.text for line in islice((line for line in lines if line.text.strip()), 2)]
    try:
        return bool(start) and isinstance(json.loads(start[0]), dict) and (named_so or len(start) > 1)
    except (ValueError, RecursionError):
        return named_so


def _binary(file: Path, known: Collection[str], header: bool | None, problems: Problems) -> Table | None:
    table = open_binary(file, problems)
    if table is None:
        return None
    if table.columns is None:
        width = 0
        cells = []
        for number, row in enumerate(table.rows, start=1):
            texts = [_text(value) for value in row]
            if any(texts):
                width = width or max(place for place, text in enumerate(texts, start=1) if text)
                cells.append(Cells(number, (texts + [""] * width)[:width]))
        return _of_cells(file, table.name, iter(cells), known, header, "row")
    columns = table.columns
    records = (
        Line(number, dict(zip(columns, row, strict=True)), f"{file}: row {number}")
        for number, row in enumerate(table.rows, start=1)
    )
    return Table(file, table.name, columns, True, records, table.bytes_columns)


def _text(value: Any) -> str:
    """A cell of a sheet as text; what Excel keeps as a number with a fraction of zero is a whole one."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()

"""Rows of one JSON: a list of objects, an object of them by picture, or a list for each column."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mwa_lightning.data.files.foreign_json import VQA, captions_of, what_it_is
from mwa_lightning.data.files.json_lines import Line
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.files.text_files import Encoding
from mwa_lightning.data.tables.delimited import folded
from mwa_lightning.system.regular_files import read_file

MOST_BYTES = 2_000_000_000  # of a file that is read whole; in memory it becomes several times that
KEY = "image"  # the column that keys of an object which is keyed by pictures go to


def json_records(
    file: Path, encoding: Encoding, *, wanted: str, known: Collection[str], problems: Problems
) -> Iterator[Line]:
    """The rows of a JSON file; what is no row is reported.

    Args:
        file: The file.
        encoding: How its bytes are letters.
        wanted: What a row should hold, for messages.
        known: Names that columns may have, in the form of `folded`.
        problems: Where a damaged file and entries that are no rows are reported.
    """
    data = read_json(file, encoding, problems)
    if data is None:
        return
    what = what_it_is(data) or captions_of(data)
    if what is not None and not (what == VQA and "question" in known):  # which the user calls a statement
        problems.add("another kind of data", f"{file} is {what}")
        return
    entries = _entries(data, known)
    if entries is None:
        problems.add("unusable file", f"{file} holds no list of rows: write a list of objects with {wanted}")
        return
    for number, record in enumerate(entries, start=1):
        where = f"{file}: entry {number}"
        if isinstance(record, dict):
            yield Line(number, record, where)
        else:
            problems.bad_row("unusable entry", f"{where} is no object: write {wanted}")


def read_json(file: Path, encoding: Encoding, problems: Problems) -> Any:
    """What a JSON file holds; None where that is nothing, which is reported."""
    if (size := file.stat().st_size) > MOST_BYTES:
        problems.add(
            "not JSON",
            f"{file} has {size / 1e9:.1f} GB, and a JSON is read whole, up to {MOST_BYTES / 1e9:.0f} GB: write it as "
            "JSONL, one object in each line",
        )
        return None
    try:
        data = json.loads(read_file(file).decode(encoding.codec))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}: {error.msg}" if size else "it is empty"
        problems.add("not JSON", f"{file} is not JSON ({where}): correct it, or fetch it again")
        return None
    except (ValueError, RecursionError, MemoryError) as error:  # damaged text, too deep, a number of too many digits
        reason = " ".join(str(error).split()) or "it does not fit into memory"
        problems.add("not JSON", f"{file} is not JSON ({reason}): correct it, or fetch it again")
        return None
    if data is None:
        problems.add("not JSON", f"{file} holds only null: fetch it again")
    return data


def _entries(data: Any, known: Collection[str]) -> list[Any] | None:
    """The rows in a JSON's value; None if there are none."""
    if isinstance(data, list):
        return data
    if not isinstance(data, dict):
        return None
    columns = [key for key in data if folded(key) in known]
    if columns and all(isinstance(data[key], list | dict) for key in columns):
        lists = {key: list(value.values()) if isinstance(value, dict) else value for key, value in data.items()}
        if (
            len(columns) > 1 and len({len(lists[key]) for key in columns}) == 1
        ):  # a list for each column, as pandas has it
            return [dict(zip(columns, row, strict=True)) for row in zip(*(lists[key] for key in columns), strict=True)]
    tables = [value for value in data.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if tables:
        return tables[0] if len(tables) == 1 else None
    if columns:
        return [data]
    return [
        {KEY: key, **value} if isinstance(value, dict) else {KEY: key, "caption": value} for key, value in data.items()
    ]

"""JSON-lines files: one object a line, each with the number of its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.files.text_files import encoding_of, text_lines

SUFFIXES = (".jsonl", ".ndjson")


class Line(NamedTuple):
    """The object of one line, or one row of a table, and where it stands, for messages."""

    number: int
    record: dict[str, Any]
    where: str


def read_lines(file: Path, *, wanted: str, problems: Problems) -> Iterator[Line]:
    """The objects of a file, one at a time, since such files may be large; blank lines are passed over.

    Args:
        file: The file.
        wanted: What a line should hold, for messages.
        problems: Where a line that is no object is reported.
    """
    encoding = encoding_of(file, problems)
    if encoding is None:
        return
    for number, text in text_lines(file, encoding, problems):
        where = f"{file}: line {number}"
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            column = f"line {number} column {error.colno}: {error.msg}"
            problems.bad_row("not JSON", f"{file} is not JSONL ({column}): write one object in each line")
        except ValueError:
            problems.bad_row("not JSON", f"{where} holds a number of too many digits: write {wanted}")
        except RecursionError:
            problems.bad_row("not JSON", f"{where} is nested too deeply: write {wanted}")
        else:
            if isinstance(record, dict):
                yield Line(number, record, where)
            else:
                problems.bad_row("unusable entry", f"{where} is no object: write {wanted}")

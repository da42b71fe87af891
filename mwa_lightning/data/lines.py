"""JSON-lines files: one object a line, each with the number of its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mwa_lightning.data.problems import Problems
from mwa_lightning.regular_files import open_file

SUFFIXES = (".jsonl", ".ndjson")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """The object of one line, and where it stands, for messages."""

    number: int
    record: dict[str, Any]
    where: str


def read_lines(file: Path, *, wanted: str, problems: Problems) -> Iterator[Line]:
    """The objects of a file, one at a time, since such files may be large; blank lines are passed over.

    Args:
        file: The file, in UTF-8.
        wanted: What a line should hold, for messages.
        problems: Where a line that is no object is reported.
    """
    offset = 0
    with open_file(file) as lines:
        for number, content in enumerate(lines, start=1):
            where = f"{file}: line {number}"
            try:
                text = content.removeprefix(_BYTE_ORDER_MARK if number == 1 else b"").decode("utf-8")
                record = json.loads(text) if text.strip() else None
            except UnicodeDecodeError as error:
                problems.add("not UTF-8", f"{file} is not UTF-8 (byte {offset + error.start}): save it as UTF-8")
                return
            except json.JSONDecodeError as error:
                column = f"line {number} column {error.colno}: {error.msg}"
                problems.add("not JSON", f"{file} is not JSONL ({column}): write an object a line")
            except ValueError:
                problems.add("not JSON", f"{where} holds a number of too many digits: write {wanted}")
            except RecursionError:
                problems.add("not JSON", f"{where} is nested too deeply: write {wanted}")
            else:
                if isinstance(record, dict):
                    yield Line(number, record, where)
                elif text.strip():
                    problems.add("unusable entry", f"{where} is no object: write {wanted}")
            offset += len(content)

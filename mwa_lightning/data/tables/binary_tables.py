"""Tables that are no text: Parquet, Arrow and Excel, read by others' libraries; and what else a file may be."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.system.file_kinds import HEAD, kind_of
from mwa_lightning.system.regular_files import open_file

EXTRA = "pip install 'mwa-lightning[tables]'"

_AS_CSV = "save it as .csv or .jsonl"
_KINDS = (  # what a file begins with, what that is, and what to do; beside those of `file_kinds`
    (b"\xd0\xcf\x11\xe0", "an Excel file in the form before 2007", "save it as .xlsx or .csv"),
    (b"SQLite format 3", "an SQLite database", _AS_CSV),
    (b"\x89HDF", "an HDF5 file", _AS_CSV),
    (b"\x93NUMPY", "a NumPy array", _AS_CSV),
    (b"ORC", "an ORC file", "save it as .parquet or .csv"),
    (b"Obj\x01", "an Avro file", "save it as .parquet or .csv"),
    *((b"\x80" + bytes([number]), "a Python pickle, which could run any code", _AS_CSV) for number in range(2, 6)),
)
_ARROW = (b"PAR1", b"ARROW1", b"FEA1", b"\xff\xff\xff\xff")
_ZIP = b"PK\x03\x04"


class BinaryTable(NamedTuple):
    """A table: what it is, its columns, rows in their order, and columns left out since they hold bytes.

    An Excel sheet has no columns of its own: its first row may name them.
    """

    name: str
    columns: tuple[str, ...] | None
    rows: Iterator[tuple[Any, ...]]
    bytes_columns: tuple[str, ...] = ()


def foreign(file: Path) -> str | None:
    """What a file is that no table can be read from, and what to do, for a sentence; None if it may be one."""
    with open_file(file) as stream:
        head = stream.read(HEAD)
    if head.startswith(_ARROW) or (head.startswith(_ZIP) and _is_excel(file)):
        return None
    if b"application/vnd.oasis.opendocument" in head:
        return f"an OpenDocument sheet: {_AS_CSV}"
    for begins, what, advice in _KINDS:
        if head.startswith(begins):
            return f"{what}: {advice}"
    what, advice = kind_of(head) or ("text", "")
    if what == "text":
        return None
    helps = advice if advice.startswith(("unpack", "fetch", "git")) else "give the table of images and texts"
    return f"{what}: {helps}"


def is_binary(file: Path) -> bool:
    """Whether `open_binary` knows this kind of file."""
    with open_file(file) as stream:
        return stream.read(len(_ARROW[1])).startswith((*_ARROW, _ZIP))


def open_binary(file: Path, problems: Problems) -> BinaryTable | None:
    """The table in a Parquet, Arrow or Excel file; None where it cannot be read, which is reported.

    Raises:
        DataError: This is a run, and the library that reads it is not installed, or the file is damaged.
    """
    with open_file(file) as stream:
        start = stream.read(len(_ARROW[1]))
    return _excel(file, problems) if start.startswith(_ZIP) else _arrow(file, start, problems)


def _is_excel(file: Path) -> bool:
    """Whether a ZIP archive is an Excel workbook, or is called so."""
    if file.suffix.lower() in (".xlsx", ".xlsm"):
        return True
    try:
        with zipfile.ZipFile(file) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def _arrow(file: Path, start: bytes, problems: Problems) -> BinaryTable | None:
    name = "Parquet" if start.startswith(b"PAR1") else "Arrow"
    try:
        import pyarrow
        from pyarrow import feather, ipc, parquet
    except ImportError:
        problems.add("library missing", f"{file} is a {name} file: {EXTRA} reads it, or save it as .csv or .jsonl")
        return None
    faults = (pyarrow.ArrowException, OSError, ValueError)
    with _Damage(file, name, problems, faults):
        if name == "Parquet":
            table: Any = parquet.ParquetFile(file)
            schema = table.schema_arrow
        elif start.startswith(b"FEA1"):
            table = feather.read_table(file, memory_map=True)
            schema = table.schema
        else:
            table = ipc.open_file(file) if start.startswith(b"ARROW1") else ipc.open_stream(file)
            schema = table.schema
        held = tuple(field.name for field in schema if _holds_bytes(pyarrow, field.type))
        columns = tuple(field.name for field in schema if field.name not in held)

        def rows() -> Iterator[tuple[Any, ...]]:
            with _Damage(file, name, problems, faults):
                if name == "Parquet":
                    batches = table.iter_batches(batch_size=4096, columns=list(columns))
                elif start.startswith(b"FEA1"):
                    batches = table.to_batches()
                elif start.startswith(b"ARROW1"):
                    batches = map(table.get_batch, range(table.num_record_batches))
                else:
                    batches = iter(table)
                for batch in batches:
                    yield from zip(*(batch.column(column).to_pylist() for column in columns), strict=True)

        return BinaryTable(name, columns, rows(), held)
    return None


def _holds_bytes(pyarrow: Any, kind: Any) -> bool:
    """Whether a column holds bytes, such as the pictures themselves: these are not read."""
    types = pyarrow.types
    if types.is_struct(kind):
        return any(_holds_bytes(pyarrow, kind.field(place).type) for place in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _excel(file: Path, problems: Problems) -> BinaryTable | None:
    try:
        import openpyxl
    except ImportError:
        problems.add("library missing", f"{file} is an Excel file: {EXTRA} reads it, or save it as .csv")
        return None
    faults = (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, SyntaxError, OSError)
    with _Damage(file, "Excel", problems, faults):
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheet = book.worksheets[0]
        if len(book.worksheets) > 1:
            problems.note(f"{file} has {len(book.worksheets)} sheets: only {sheet.title!r}, the first, is read")

        def rows() -> Iterator[tuple[Any, ...]]:
            with _Damage(file, "Excel", problems, faults):
                yield from sheet.iter_rows(values_only=True)

        return BinaryTable("Excel", None, rows())
    return None


class _Damage:
    """Reports what a library says of a damaged file, in place of its exception.

    Args:
        file: The file.
        name: What kind it is.
        problems: Where it is reported.
        faults: The exceptions by which the library says so.
    """

    def __init__(self, file: Path, name: str, problems: Problems, faults: tuple[type[Exception], ...]) -> None:
        self._file, self._name, self._problems, self._faults = file, name, problems, faults

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, self._faults) or (isinstance(error, OSError) and error.filename):
            return False
        reason = " ".join(str(error).split())[:120]
        self._problems.add(
            "damaged table", f"{self._file} is a damaged {self._name} file ({reason}): fetch or write it again"
        )
        return True

"""The cells of a table in text: what parts them and how they are quoted is found by looking at its rows."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.files.text_files import TextLine
from mwa_lightning.errors import counted

DELIMITERS = {"\t": "tabs", "|": "pipes", ";": "semicolons", ",": "commas"}
MOST_COLUMNS = 10_000

_ONE = {"\t": "a tab", "|": "a pipe", ";": "a semicolon", ",": "a comma"}

_PICTURE = re.compile(r"[^\t|;,\"]+\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|heic)(?:#\d+)?", re.IGNORECASE)
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 300, 4_000_000
_MOST_LINES_OF_A_CELL = 100


class Cells(NamedTuple):
    """The cells of one row, and the number of the line that it begins at."""

    number: int
    cells: list[str]


class Delimited(NamedTuple):
    """A table in text: what parts its cells, how many there are in most rows, and the rows."""

    delimiter: str
    width: int
    rows: Iterator[Cells]


class _Broken(NamedTuple):
    number: int
    reason: str


class _Unfinished(Exception):  # noqa: N818 (how a text ends)
    """A quote is open at the end of the text."""


class _Misquoted(Exception):  # noqa: N818 (how a text is)
    """After a closing quote there is more of the cell."""


class _Quoting:
    """How cells are read where `delimiter` parts them and a quote in a quoted cell is `escaped` in one of two ways."""

    def __init__(self, delimiter: str, *, backslash: bool) -> None:
        self._delimiter, self._backslash = delimiter, backslash
        part = re.escape(delimiter)
        inside = r'(?:[^"\\]++|\\.|"")*+' if backslash else r'(?:[^"]++|"")*+'
        outside = rf"(?:[^{part}\\]++|\\.)*+\\?" if backslash else rf"[^{part}]*+"
        self._cell = re.compile(rf'[ \n]*+(?:"({inside})"[ \n]*+|({outside}))({part}|\Z)', re.DOTALL)
        self._open = re.compile(rf'[ \n]*+"{inside}\\?\Z', re.DOTALL)
        self._escape = re.compile(rf'\\(["\\{part}])|"(")' if backslash else '"(")')

    def split(self, text: str) -> list[str]:
        """The cells of a row. Raises _Unfinished or _Misquoted."""
        if '"' not in text and not (self._backslash and "\\" in text):
            return [cell.strip() for cell in text.split(self._delimiter)]
        cells = []
        place = 0
        while (found := self._cell.match(text, place)) is not None:
            quoted, plain, end = found.groups()
            if quoted is None and plain.startswith('"'):
                break
            cell = plain if quoted is None else quoted
            if self._backslash or quoted is not None:
                cell = self._escape.sub(lambda escaped: escaped[1] or escaped[escaped.re.groups], cell)
            cells.append(cell.strip())
            if not end:
                return cells
            place = found.end()
        raise _Unfinished if self._open.match(text, place) else _Misquoted


def read_delimited(
    file: Path, lines: Iterator[TextLine], *, known: Collection[str], problems: Problems
) -> Delimited | None:
    """The rows of a table; None where no delimiter makes columns of it, which is reported.

    A row that is broken is reported with its line, and the next one is read as if nothing had been.

    Args:
        file: The table, for messages, and its suffix as a hint.
        lines: Its lines.
        known: Names that a header may have, in the form of `folded`.
        problems: Where broken rows are reported.
    """
    sample: list[TextLine] = []
    characters = 0
    for line in lines:
        if sample or line.text.strip():
            sample.append(line)
            characters += len(line.text)
        if len(sample) == _SAMPLE_LINES or characters > _SAMPLE_CHARACTERS:
            break
    if sample and (told := re.fullmatch(r'"?sep=(.)"?', sample[0].text.strip())):  # Excel's own way to say it
        return _table(file, told[1], sample[1:], lines, known, problems)
    scores = {part: _score(part, sample, file.suffix.lower(), known) for part in DELIMITERS}
    best = max(scores, key=lambda part: scores[part])
    if scores[best] <= _NOTHING:
        if sample:
            problems.add(
                "no columns",
                f"{file}: no columns are seen in {sample[0].text[:60].strip()!r}: separate them by tabs, pipes, "
                "semicolons or commas",
            )
        return None
    return _table(file, best, sample, lines, known, problems)


def folded(name: str) -> str:
    """A column's name without case, blanks and the like: `Image Path`, `image_path` and `imagePath` are one."""
    return re.sub(r"[\W_]+", "", name).lower()


def names_picture(cell: str) -> bool:
    """Whether a cell reads like the name of a picture's file."""
    return _PICTURE.fullmatch(cell.strip()) is not None


_Score = tuple[int, bool, float, bool, int]
_NOTHING: _Score = (0, False, 0.0, False, 0)


def _score(part: str, sample: list[TextLine], suffix: str, known: Collection[str]) -> _Score:
    """How well a delimiter parts a table: names of a header, cells that name pictures, rows of one width."""
    quoting = _Quoting(part, backslash=False)
    rows = []
    for line in sample:
        try:
            rows.append(quoting.split(line.text))
        except (_Unfinished, _Misquoted):
            rows.append(line.text.split(part))
    widths = Counter(len(cells) for cells in rows)
    width, count = max(widths.items(), key=lambda item: (item[1], item[0]), default=(1, 0))
    if width < 2:
        return _NOTHING
    header = len({folded(cell) for cell in rows[0]} & set(known)) if len(rows[0]) > 1 else 0
    pictures = sum(len(cells) > 1 and any(map(names_picture, cells)) for cells in rows) * 2 > len(rows)
    hint = part in {".tsv": "\t", ".tab": "\t", ".psv": "|", ".csv": ",;"}.get(suffix, "")
    return header, pictures, round(count / len(rows), 1), hint, len(DELIMITERS) - list(DELIMITERS).index(part)


def _table(
    file: Path, part: str, sample: list[TextLine], lines: Iterator[TextLine], known: Collection[str], problems: Problems
) -> Delimited | None:
    plain, backslash = (_Quoting(part, backslash=escaped) for escaped in (False, True))
    quotings = (plain, backslash)
    if any('\\"' in line.text for line in sample) and _fitting(backslash, sample) >= _fitting(plain, sample):
        quotings = (backslash, plain)
    rows = [row for row in _logical_rows(iter(sample), part, quotings, None) if isinstance(row, Cells)]
    # Of widths that come equally often the first row's, since that may be the header; a header says it in any case.
    widths = Counter(len(row.cells) for row in rows if any(row.cells)).most_common(1)
    width = widths[0][0] if widths else 0
    if rows and len({folded(cell) for cell in rows[0].cells} & set(known)) > 1:
        width = len(rows[0].cells)
    if width > MOST_COLUMNS:
        problems.add("no columns", f"{file} has {width:,} columns: a table of images has a few")
        return None
    return Delimited(part, width, _usable(file, _logical_rows(chain(sample, lines), part, quotings, width), problems))


def _fitting(quoting: _Quoting, sample: list[TextLine]) -> int:
    count = 0
    for line in sample:
        with suppress(_Unfinished, _Misquoted):
            quoting.split(line.text)
            count += 1
    return count


def _usable(file: Path, rows: Iterator[Cells | _Broken], problems: Problems) -> Iterator[Cells]:
    for row in rows:
        if isinstance(row, Cells):
            if any(row.cells):  # what Excel leaves below a table has none
                yield row
        else:
            problems.bad_row("unusable row", f"{file}: line {row.number} {row.reason}")


def _logical_rows(
    lines: Iterator[TextLine], part: str, quotings: tuple[_Quoting, _Quoting], width: int | None
) -> Iterator[Cells | _Broken]:
    """Rows of `width` cells (None = of any), and what is none; a quoted cell may go over several lines."""
    ahead: deque[TextLine] = deque()
    while (line := ahead.popleft() if ahead else next(lines, None)) is not None:
        if not line.text.strip():
            continue
        cells, reason = None, ""
        for quoting in quotings:
            try:
                whole = quoting.split(line.text)
            except _Misquoted:
                reason = reason or 'has more after the closing quote of a cell: write a quote in a cell twice ("")'
            except _Unfinished:
                reason = reason or "opens a quote that nothing closes: close it, or write it twice"
                cells = _over_lines(quoting, line, lines, ahead, part, width)
            else:
                cells = _cut(whole, width)
                reason = reason or ("" if cells is not None else _miscounted(whole, width, part))
            if cells is not None:
                break
        if cells is None and part in "\t|":  # such tables are often written without any quoting
            cells = _cut([cell.strip() for cell in line.text.split(part)], width)
        yield _Broken(line.number, reason) if cells is None else Cells(line.number, cells)


def _over_lines(
    quoting: _Quoting,
    line: TextLine,
    lines: Iterator[TextLine],
    ahead: deque[TextLine],
    part: str,
    width: int | None,
) -> list[str] | None:
    """The cells of a row whose last one goes on in the next lines, which are then used up; None if it is no such."""
    text = line.text
    for count in range(_MOST_LINES_OF_A_CELL):
        if count == len(ahead):
            if (following := next(lines, None)) is None:
                return None
            ahead.append(following)
        more = ahead[count].text
        text = f"{text}\n{more}"
        if part in "\t|" and len(more.split(part)) == width:
            return None  # a row of its own: no caption has tabs in it
        if '"' not in more:
            continue
        try:
            cells = _cut(quoting.split(text), width)
        except _Unfinished:
            continue
        except _Misquoted:
            return None
        if cells is not None:
            for _ in range(count + 1):
                ahead.popleft()
        return cells
    return None


def _cut(cells: list[str], width: int | None) -> list[str] | None:
    """The cells if there are `width`, not counting empty ones at the end; None otherwise."""
    if width is None:
        return cells
    if len(cells) > width and not any(cells[width:]):
        cells = cells[:width]
    return cells if len(cells) == width else None


def _miscounted(cells: list[str], width: int | None, part: str) -> str:
    hint = f" (one with {_ONE.get(part, repr(part))} in it needs quotes)" if len(cells) > (width or 0) else ""
    return f"has {counted(len(cells), 'cell')}, the table has {counted(width or 0, 'column')}{hint}: correct it"

"""The lines of a text file of whatever encoding and line ends, one at a time, since such files may be large."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.system.regular_files import open_file

LONGEST_LINE = 16_000_000  # characters; a longer one is no line of a table, and would fill the memory

_CHUNK = 1 << 20
_MARKS = (  # UTF-32's begin as UTF-16's do
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_NOT_WINDOWS = frozenset(b"\x81\x8d\x8f\x90\x9d")  # bytes that Windows-1252 has no letter for
_HALF = re.compile("[\ud800-\udfff]")


class Encoding(NamedTuple):
    """How the bytes of a file are letters: Python's name, the one for people, and how its lines end."""

    codec: str
    name: str
    newline: str


class TextLine(NamedTuple):
    """A line without its end, and its number from 1."""

    number: int
    text: str


def encoding_of(file: Path, problems: Problems) -> Encoding | None:
    """The encoding of a file; None where it cannot be told, which is reported.

    What is neither UTF-8 nor UTF-16 is taken for Windows-1252 where that makes words of it, with a note.
    """
    with open_file(file) as stream:
        start = stream.read(_CHUNK)
    for mark, codec, name in _MARKS:
        if start.startswith(mark):
            return Encoding(codec, name, _newline(start.decode(codec, "replace")))
    if (unmarked := _unmarked_utf16(start)) is not None:
        return Encoding(unmarked, "UTF-16", _newline(start.decode(unmarked, "replace")))
    newline = _newline(start.decode("latin-1"))
    broken = _first_not_utf8(file)
    if broken is None:
        return Encoding("utf-8", "UTF-8", newline)
    with open_file(file) as stream:
        stream.seek(max(broken - _CHUNK, 0))
        around = stream.read(2 * _CHUNK)
    letters = around.decode("utf-8", "surrogateescape")
    high = [letter for letter in letters if letter > "\x7f"]
    damaged = sum(0xDC80 <= ord(letter) <= 0xDCFF for letter in high)
    if len(high) - damaged > damaged:  # a UTF-8 file, of which some lines are broken: each is named when it is read
        return Encoding("utf-8", "UTF-8", newline)
    runs = re.findall(rb"[\x80-\xff]+", around)
    if not _NOT_WINDOWS & set(b"".join(runs)) and sum(map(len, runs)) < 1.5 * len(runs):
        place = max(around.find(runs[0]) - 20, 0)
        sample = around[place : place + 60].decode("cp1252").split("\n")
        excerpt = max(sample, key=lambda part: any(letter > "\x7f" for letter in part)).strip()
        problems.note(
            f"{file} is not UTF-8; read as Windows-1252 it has {excerpt!r}: if these are the wrong letters, save it "
            "as UTF-8"
        )
        return Encoding("cp1252", "Windows-1252", newline)
    problems.add("not UTF-8", f"{file} is not UTF-8 (byte {broken}): save it as UTF-8")
    return None


def first_letter(file: Path, encoding: Encoding) -> str:
    """The first character that is no blank, of those at the beginning; empty where there is none."""
    with open_file(file) as stream:
        return stream.read(_CHUNK).decode(encoding.codec, "replace").lstrip()[:1]


def text_lines(file: Path, encoding: Encoding, problems: Problems) -> Iterator[TextLine]:
    """The lines of a file, without their ends; what is no text of that encoding, or endless, is reported."""
    errors = "surrogateescape" if encoding.codec.startswith("utf-8") else "strict"
    number = 0
    with TextIOWrapper(open_file(file), encoding=encoding.codec, errors=errors, newline=encoding.newline) as stream:
        while True:
            number += 1
            try:
                text = stream.readline(LONGEST_LINE)
            except UnicodeError as error:
                reason = getattr(error, "reason", "cut short")
                problems.add("damaged text", f"{file}: line {number} is not {encoding.name} ({reason}): write it again")
                return
            if not text:
                return
            if len(text) >= LONGEST_LINE and not text.endswith(encoding.newline):
                while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(encoding.newline):
                    pass
                problems.bad_row(
                    "endless line",
                    f"{file}: line {number} has more than {LONGEST_LINE:,} characters: correct it",
                )
                continue
            text = text.removesuffix(encoding.newline).removesuffix("\r")
            if "\0" in text:
                problems.bad_row("damaged text", f"{file}: line {number} holds a zero byte: write it again")
            elif errors == "surrogateescape" and not text.isascii() and _HALF.search(text):
                problems.bad_row("not UTF-8", f"{file}: line {number} is not UTF-8, and other lines are: correct it")
            else:
                yield TextLine(number, text)


def _newline(start: str) -> str:
    return "\n" if "\n" in start or "\r" not in start else "\r"


def _unmarked_utf16(start: bytes) -> str | None:
    """UTF-16 without a mark: the commas, blanks and line ends of any language have a zero byte there."""
    even, odd = start[::2].count(0), start[1::2].count(0)
    if 40 * max(even, odd) < len(start) or min(even, odd) * 10 > max(even, odd):
        return None
    codec = "utf-16-le" if odd > even else "utf-16-be"
    letters = start[: len(start) // 2 * 2].decode(codec, "replace")
    return codec if "\n" in letters or "\r" in letters else None


def _first_not_utf8(file: Path) -> int | None:
    """Place of the first byte that makes a file something else than UTF-8; None if there is none."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    place = 0
    with open_file(file) as stream:
        while True:
            chunk = stream.read(_CHUNK)
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                return place - held + error.start
            if not chunk:
                return None
            place += len(chunk)

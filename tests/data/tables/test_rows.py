"""Tables in all their forms give the same rows; a broken row is named and spoils no other."""

from __future__ import annotations

import codecs
import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mwa_lightning.data.files import text_files
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.tables.rows import Table, open_table
from mwa_lightning.errors import DataError

KNOWN = ("image", "caption", "split", "file_name", "filepath", "title")


def _open(file: Path, problems: Problems | None = None) -> Table:
    table = open_table(file, wanted="image and caption", known=KNOWN, problems=problems or Problems())
    assert table is not None
    return table


def _rows(file: Path, problems: Problems | None = None) -> list[dict[str, Any]]:
    return [row.record for row in _open(file, problems).rows]


_ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",  # Python writes the mark of this machine
    "utf-16-le": b"",
    "utf-16-be": b"",
    "utf-16-be with a mark": codecs.BOM_UTF16_BE,
    "cp1252": b"",
}
_letters = st.characters(codec="cp1252", exclude_categories=("Cc", "Zs", "Cf"), exclude_characters="\\") | st.just(" ")
_captions = st.lists(
    st.text(_letters, min_size=1, max_size=30).map(str.strip).filter(lambda text: any(map(str.isalpha, text))),
    min_size=3,
    max_size=6,
)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@settings(max_examples=40)
@given(
    captions=_captions,
    encoding=st.sampled_from(list(_ENCODINGS)),
    quoting=st.sampled_from(["minimal", "all", "backslash"]),
    header=st.booleans(),
)
@example(captions=["a, b", "c, d", 'say "hi"; now | then'], encoding="utf-16-be", quoting="all", header=False)
@example(captions=['"a"', '"', 'b" c'], encoding="cp1252", quoting="backslash", header=True)
def test_open_table__any_delimiter_quoting_encoding_and_line_end(
    tmp_path_factory: pytest.TempPathFactory,
    delimiter: str,
    newline: str,
    captions: list[str],
    encoding: str,
    quoting: str,
    header: bool,
) -> None:
    text = io.StringIO(newline="")
    escaped = {"doublequote": False, "escapechar": "\\"} if quoting == "backslash" else {}
    how = csv.QUOTE_MINIMAL if quoting == "minimal" else csv.QUOTE_ALL
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline, quoting=how, **escaped)  # type: ignore[arg-type]
    if encoding == "cp1252":  # where letters of other languages stand one by one, not in rows
        captions = ["".join(letter if letter.isascii() else f"{letter}x" for letter in text) for text in captions]
    rows = [(f"images/{i}.jpg", caption, "train") for i, caption in enumerate(captions)]
    writer.writerows([("image", "caption", "split"), *rows] if header else rows)
    codec = encoding.split()[0]
    file = tmp_path_factory.getbasetemp() / "pairs.txt"
    file.write_bytes(_ENCODINGS[encoding] + text.getvalue().encode(codec))
    table = _open(file, Problems(collect=True))
    assert table.has_header == header
    assert [tuple(row.record.values()) for row in table.rows] == rows


@pytest.mark.parametrize("delimiter", ["\t", "|", ";"])
@pytest.mark.parametrize("header", ["image{0}caption\n", ""])
def test_open_table__captions_full_of_commas(tmp_path: Path, delimiter: str, header: str) -> None:
    file = tmp_path / "train.csv"  # named for commas, as open_clip's are
    rows = [(f"{i}.jpg", f"a dog, a cat, and {i}") for i in range(5)]
    file.write_text(header.format(delimiter) + "".join(f"{image}{delimiter}{caption}\n" for image, caption in rows))
    assert [tuple(row.values()) for row in _rows(file)] == rows


@pytest.mark.parametrize(
    ("content", "kept", "says"),
    [
        ("image,caption\na.jpg,one\nb.jpg\nc.jpg,three\n", ["a.jpg", "c.jpg"],
         "line 3 has 1 cell, the table has 2 columns"),
        ("image,caption\na.jpg,one\nb.jpg,two, more\nc.jpg,three\n", ["a.jpg", "c.jpg"],
         "line 3 has 3 cells, the table has 2 columns (one with a comma in it needs quotes)"),
        ("image,caption\na.jpg,one\nb.jpg,two, more, or less\n", ["a.jpg"],
         "line 3 has 4 cells, the table has 2 columns"),
        ('image,caption\na.jpg,one\nb.jpg,"two\nc.jpg,three\nd.jpg,"four"\n', ["a.jpg", "c.jpg", "d.jpg"],
         "line 3 opens a quote that nothing closes"),
        ('image,caption\na.jpg,one\nb.jpg,"two" more\nc.jpg,three\n', ["a.jpg", "c.jpg"],
         "line 3 has more after the closing quote"),
        ("image,caption\na.jpg,one\nb.jpg,t\0o\nc.jpg,three\n", ["a.jpg", "c.jpg"], "line 3 holds a zero byte"),
        ("image,caption\na.jpg,é\nb.jpg,\udce9\nc.jpg,é\n", ["a.jpg", "c.jpg"], "line 3 is not UTF-8, and other lines"),
    ],
)  # fmt: skip
def test_open_table__broken_row_spoils_no_other(tmp_path: Path, content: str, kept: list[str], says: str) -> None:
    file = tmp_path / "pairs.csv"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    problems = Problems(collect=True)
    assert [row["image"] for row in _rows(file, problems)] == kept
    assert [says in problem.message and str(file) in problem.message for problem in problems.found] == [True]
    with pytest.raises(DataError, match="line 3"):
        _rows(file)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('a.jpg,"one\ntwo, ""three"""\nb.jpg,four\n', [("a.jpg", 'one\ntwo, "three"'), ("b.jpg", "four")]),
        ('a.jpg\t" Three men\nb.jpg\tsay " hi\n', [("a.jpg", '" Three men'), ("b.jpg", 'say " hi')]),  # never quoted
        ('a.jpg,"he said \\"a, b\\""\nb.jpg,"x"\n', [("a.jpg", 'he said "a, b"'), ("b.jpg", "x")]),
        ("images\\1.jpg,one\nimages\\2.jpg,two\n", [("images\\1.jpg", "one"), ("images\\2.jpg", "two")]),
        ('a.jpg, "one, two" ,,\nb.jpg , three\nc.jpg,four\n',
         [("a.jpg", "one, two"), ("b.jpg", "three"), ("c.jpg", "four")]),
        ("sep=;\na.jpg;one\nb.jpg;two\n", [("a.jpg", "one"), ("b.jpg", "two")]),
        ("a.jpg,one\n,\n,\n", [("a.jpg", "one")]),  # as Excel leaves below a table
        (",,\n" * 3, []),
    ],
)  # fmt: skip
def test_open_table__quotes_and_what_looks_like_them(tmp_path: Path, content: str, rows: list[tuple[str, str]]) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text(content)
    table = _open(file)
    assert [tuple(row.record.values()) for row in table.rows] == rows
    assert not table.has_header


@pytest.mark.parametrize(
    ("content", "header"),
    [
        ("foo,bar\n1.jpg,a\n2.jpg,b\n", True),  # the others name pictures, the first does not
        ("nr;satz\n1;a\n2;b\n", True),
        ("Image Path,x\n1,a\n", True),  # a known name
        ("1.jpg,caption\n2.jpg,b\n", False),
        ("1,a\n2,b\n", False),
        ("1,caption\n2,a dog\n3,b\n", False),  # a caption of one word, which is also a usual name
    ],
)
def test_open_table__header(tmp_path: Path, content: str, header: bool) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text(content)
    table = open_table(file, wanted="", known=["image_path", "caption"], problems=Problems())
    assert table is not None
    assert table.has_header == header


_RECORDS = [{"image": "a.jpg", "caption": "one"}, {"image": "b.jpg", "caption": "two"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(_RECORDS)),
        ("a.json", json.dumps(_RECORDS, indent=1)),
        ("a.json", "\n".join(map(json.dumps, _RECORDS))),  # JSONL whatever its name is
        ("a.jsonl", json.dumps(_RECORDS)),  # and no JSONL
        ("a.json", json.dumps({"info": {}, "data": _RECORDS})),
        ("a.json", json.dumps({"a.jpg": "one", "b.jpg": "two"})),
        ("a.json", json.dumps({"a.jpg": {"caption": "one"}, "b.jpg": {"caption": "two"}})),
        ("a.json", json.dumps({"image": ["a.jpg", "b.jpg"], "caption": ["one", "two"]})),
        ("a.json", json.dumps({"image": {"0": "a.jpg", "1": "b.jpg"}, "caption": {"0": "one", "1": "two"}})),
    ],
)
@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
def test_open_table__json(tmp_path: Path, name: str, content: str, codec: str) -> None:
    (tmp_path / name).write_text(content, encoding=codec)
    assert _rows(tmp_path / name) == _RECORDS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": ' * 100_000, "is not JSON"),
        (b"null", "no columns"),
        (b"[1, 2]", "entry 1 is no object: write image and caption"),
        (b'{"a": [{}], "b": [{}]}', "holds no list of rows"),
        (b'{"images": [{}], "annotations": [{}]}', "is COCO's form of captions: take data=karpathy"),
        (b'[{"question": "", "answer": ""}]', "is questions and answers (VQA)"),
        (b'{"a.jpg" 5}', "is not JSON"),
        (b"a.jpg\nb.jpg\n", "no columns are seen in 'a.jpg'"),
        (b",".join([b"x"] * 20_000), "has 20,000 columns"),
        ("a.jpg,Москва\n".encode("cp1251"), "is not UTF-8 (byte 6)"),
        (b"\x1f\x8b\x08", "is a compressed file: unpack it"),
        (b"\x80\x04\x95", "a Python pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "is an HTML page: fetch it again"),
        (b"PK\x03\x04", "is a ZIP archive"),
        (b"\xff\xd8\xff\xe0", "is a JPEG: give the table"),
        (b"\0" * 1000, "zero byte"),
        (b"a,b,c\n" * 3 + b"image,caption", "line 4 has 2 cells, the table has 3 columns"),
    ],
)
def test_open_table__no_table(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        _rows(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_open_table__endless_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LONGEST_LINE", 1000)
    file = tmp_path / "a.csv"
    file.write_text(f"a.jpg,one\nb.jpg,{'x' * 5000}\nc.jpg,three\n")
    problems = Problems(collect=True)
    assert [row["1"] for row in _rows(file, problems)] == ["a.jpg", "c.jpg"]
    assert "line 2 has more than 1,000 characters" in problems.found[0].message


def test_open_table__windows_1252_is_noted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("a.jpg,un café\n".encode("cp1252"))
    problems = Problems()
    assert _rows(tmp_path / "a.csv", problems) == [{"1": "a.jpg", "2": "un café"}]
    assert "read as Windows-1252 it has 'a.jpg,un café'" in problems.notes[0]


def _write_parquet(file: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(_RECORDS), file)


def _write_arrow(file: Path, *, stream: bool) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(_RECORDS)
    with (pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file)(file, table.schema) as writer:
        writer.write_table(table)


def _write_excel(file: Path) -> None:
    book = pytest.importorskip("openpyxl").Workbook()
    for row in [("image", "caption"), *(tuple(record.values()) for record in _RECORDS)]:
        book.active.append(row)
    book.save(file)


_WRITERS: dict[str, Callable[[Path], None]] = {
    "a.parquet": _write_parquet,
    "a.arrow": lambda file: _write_arrow(file, stream=True),
    "a.feather": lambda file: _write_arrow(file, stream=False),
    "a.xlsx": _write_excel,
}


@pytest.mark.parametrize("name", _WRITERS)
def test_open_table__binary(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    _WRITERS[name](file)
    assert _rows(file) == _RECORDS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=r"is a damaged (Parquet|Arrow|Excel) file \(.*\): fetch or write it again"):
        _rows(file)


def test_open_table__bytes_in_parquet_are_not_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    records = [{"image": {"bytes": b"x", "path": "a.jpg"}, "caption": "one"}]
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    table = _open(tmp_path / "a.parquet")
    assert (table.columns, table.bytes_columns) == (("caption",), ("image",))


@pytest.mark.parametrize(("name", "library"), [("a.parquet", "pyarrow"), ("a.xlsx", "openpyxl")])
def test_open_table__library_missing(tmp_path: Path, name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"file: pip install 'mwa-lightning\[tables\]' reads it, or save it as \.csv"):
        _rows(tmp_path / name)


def test_open_table__json_on_one_endless_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on lines of a table; all of a large JSON may be one line."""
    monkeypatch.setattr(text_files, "LONGEST_LINE", 20)
    (tmp_path / "a.json").write_text(json.dumps(_RECORDS))
    (tmp_path / "b.json").write_text(json.dumps({record["image"]: record["caption"] for record in _RECORDS}))
    assert _rows(tmp_path / "a.json") == _rows(tmp_path / "b.json") == _RECORDS

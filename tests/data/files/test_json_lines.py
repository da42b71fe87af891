"""JSON lines arrive one at a time, and a damaged one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mwa_lightning.data.files.json_lines import read_lines
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.errors import DataError


def test_read_lines__numbers_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes('\ufeff{"a": "é"}\r\n\n  \n{"a": 2}'.encode())
    lines = list(read_lines(file, wanted="a", problems=Problems()))
    assert [(line.number, line.record) for line in lines] == [(1, {"a": "é"}), (4, {"a": 2})]
    assert lines[1].where == f"{file}: line 4"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": 1}\n{"a" 2}\n', "is not JSONL (line 2 column 6"),
        (b'{"a": 1}\n[1]\n', "line 2 is no object: write a of each"),
        (b'{"a": 1}\nnull\n', "line 2 is no object"),
        (b'{"a": 1}\n{"a": "\xcc\xee\xf1"}\n', "is not UTF-8 (byte 16)"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "holds a number of too many digits"),
    ],
)
def test_read_lines__damaged(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_lines(file, wanted="a of each", problems=Problems()))
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_lines__collects_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"a\n5\n{"a": 2}\n')
    problems = Problems(collect=True)
    assert [line.record["a"] for line in read_lines(file, wanted="a", problems=problems)] == [1, 2]
    assert [problem.kind for problem in problems.found] == ["not JSON", "unusable entry"]

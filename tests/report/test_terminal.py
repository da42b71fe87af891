from __future__ import annotations

import io
import sys

import pytest

from mwa_lightning.report.terminal import say


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "i→t größe \\udcff\n".encode()),
        ("latin-1", b"i\\u2192t gr\xf6\xdfe \\udcff\n"),
        ("ascii", b"i\\u2192t gr\\xf6\\xdfe \\udcff\n"),
    ],
)
def test_say__letters_that_are_not_there(encoding: str, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    say("i→t größe \udcff")
    assert sys.stdout.buffer.getvalue() == expected  # type: ignore[attr-defined]

"""What a run says on a terminal that has not all letters."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from rich.table import Table

from mwa_lightning.training.runs.console import console, show


def test_console__letters_that_the_terminal_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    table = Table("i→t R@1", box=None)
    table.add_row("60.00")
    with console():
        logging.getLogger("mwa_lightning.data.images.reader").warning("größe→名.jpg cannot be read")
        show(table)
    shown = sys.stdout.buffer.getvalue()  # type: ignore[attr-defined]
    lines = [line.strip() for line in shown.splitlines()]
    assert lines == [b"warning: gr\xf6\xdfe\\u2192\\u540d.jpg cannot be read", b"i\\u2192t R@1", b"60.00"]

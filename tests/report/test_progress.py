"""Progress: a bar where somebody looks, now and then a line where nobody may, and never in the way of an error."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest

from mwa_lightning.report.progress import progress


def test_lines__every_half_minute_with_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 100_000, 20))  # 20 s a part
    monkeypatch.setattr("mwa_lightning.report.progress.time.perf_counter", lambda: float(next(clock)))
    with progress("writing images", 1500) as advance:
        for _ in range(5):
            advance()
    assert capsys.readouterr().out.splitlines() == [
        "writing images: 2 of 1,500, 499 min 20 s left",
        "writing images: 4 of 1,500, 498 min 40 s left",
    ]


def test_lines__none_of_a_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("writing images", 3) as advance:
        for _ in range(3):
            advance()
    assert capsys.readouterr() == ("", "")


def failing() -> None:
    with progress("writing images", 3) as advance:
        advance()
        advance()
        raise ZeroDivisionError


def test_bar__on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone when the work ends, also by an error."""
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with pytest.raises(ZeroDivisionError):
            failing()
    shown = b""
    with contextlib.suppress(OSError):  # the end
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert b"writing images" in shown
    assert b"2/3" in shown
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1  # the cursor goes, and comes back
    assert shown.endswith(b"\x1b[2K")

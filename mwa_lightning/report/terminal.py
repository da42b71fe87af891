"""The standard output and error, whatever becomes of them: a reader leaves, a disk is full, a terminal is closed."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

from mwa_lightning.errors import StorageError


def say(text: str, *, end: str = "\n") -> None:
    """Print what a person may follow a work by; where nobody takes it, the work goes on."""
    _print(f"{text}{end}", sys.stdout)


def deliver(text: str, *, end: str = "\n") -> None:
    """Print what a command is for, to a reader that may leave early, as `head` does.

    Raises StorageError if it cannot be written.
    """
    error = _print(f"{text}{end}", sys.stdout)
    if error is not None and not isinstance(error, BrokenPipeError):
        raise StorageError(
            f"the standard output cannot be written ({error.strerror}): make room, or have it written elsewhere"
        ) from error


def complain(text: str) -> None:
    """Print lines for a person to the standard error, if that takes them."""
    _print(f"{text}\n", sys.stderr)


def open_streams() -> None:
    """Have standard streams that no print fails on, of whatever library; for a process of our own."""
    number = os.open(os.devnull, os.O_RDWR)
    while number < 3:  # one was closed, and the next file would take its number and what is printed
        number = os.dup(number)
    os.close(number)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _Stream(sys.stdout, 1, errors="strict")
    sys.stderr = _Stream(sys.stderr, 2, errors="backslashreplace")


class _Output(io.FileIO):
    """What is not taken is lost; `lost` says why the last of it was."""

    lost: OSError | None = None

    def write(self, content: Any) -> int:
        """Write bytes, as many as are taken."""
        self.lost = None
        try:
            written = super().write(content)
        except OSError as error:
            self.lost = error
            written = None
        return memoryview(content).nbytes if written is None else written


class _Stream(io.TextIOWrapper):
    """A standard stream in place of Python's own, which is None if it was closed."""

    def __init__(self, own: TextIO | None, number: int, *, errors: str) -> None:
        self.output = _Output(number, "w", closefd=False)
        super().__init__(
            io.BufferedWriter(self.output),
            encoding=getattr(own, "encoding", None),
            errors=getattr(own, "errors", None) or errors,
            line_buffering=getattr(own, "line_buffering", True) or getattr(own, "write_through", False),
        )


def _print(text: str, stream: TextIO) -> OSError | None:
    """Print to a stream, which may have no letters for what is in the text; why that failed, if it did."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        # In one piece: Ctrl-C may end the command between two.
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", file=stream, flush=True)
    except OSError as error:
        return error
    return stream.output.lost if isinstance(stream, _Stream) else None

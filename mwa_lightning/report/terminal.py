"""The standard output, whatever it takes."""

from __future__ import annotations

import os
import sys


def say(text: str, *, end: str = "\n") -> None:
    """Print to a reader that may leave early, as `head` does, or has no letters for what is in the text."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        # In one piece: Ctrl-C may end the command between two.
        print(f"{text}{end}".encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)
    except BrokenPipeError:
        # What is left in the buffer must not fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

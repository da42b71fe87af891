"""How far a long piece of work is: a bar on a terminal, elsewhere a line every half minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mwa_lightning.report.terminal import say

SECONDS = 30.0  # between two lines


class Clock:
    """Tells from time to time how much of a work is done, and how long the rest of it will take.

    Args:
        total: Number of its parts.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._begin = self._told = time.perf_counter()

    def line(self, done: int) -> str:
        """What to say after so many parts; mostly nothing."""
        now = time.perf_counter()
        if now - self._told < SECONDS or not done:
            return ""
        self._told = now
        left = (now - self._begin) / done * (self._total - done)
        return f"{done:,} of {self._total:,}, {_duration(left)} left"

    def elapsed(self) -> str:
        """How long it has taken."""
        return _duration(time.perf_counter() - self._begin)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show on the standard output how far a work is; what it gives is to be called after each of the parts.

    Args:
        what: What is done, and what its parts are, as in `writing images`.
        total: Number of the parts.
    """
    if sys.stdout.isatty():
        from rich import progress as rich
        from rich.console import Console

        columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn())
        with rich.Progress(*columns, rich.TimeRemainingColumn(), transient=True, console=Console()) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
        return
    clock, done = Clock(total), 0

    def advance() -> None:
        nonlocal done
        done += 1
        if line := clock.line(done):
            say(f"{what}: {line}")

    yield advance


def _duration(seconds: float) -> str:
    """As minutes and seconds."""
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"

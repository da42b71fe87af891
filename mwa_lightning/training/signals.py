"""Signals that ask a run to save and end: SIGTERM, and the one that SLURM sends ahead of a time limit.

A handler may run anywhere, in mid-step and in mid-save, so it only notes the signal. The run looks at places where it
can end: between the parts of the set-up, between two steps, between two batches of an evaluation.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What SLURM may be told to send (`sbatch --signal`): users have these for themselves.
REQUEUE_SIGNALS = ("USR1", "USR2")
_ALL = (signal.SIGTERM, *(signal.Signals[f"SIG{name}"] for name in REQUEUE_SIGNALS))


class Signals:
    """What this process was told. Only `listening` lets signals in; without it nothing ever comes."""

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self.count = 0

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Keep the first signal; those that follow, such as SLURM's at the requeueing, ask for the same."""
        self.count += 1
        if self.noted is None:
            self.noted = signal.Signals(number)


@contextmanager
def listening(requeue_signal: str) -> Iterator[Signals]:
    """Note SIGTERM and SIG<requeue_signal> in place of dying of them; for the main thread of a command."""
    signals = Signals()
    numbers = (signal.SIGTERM, signal.Signals[f"SIG{requeue_signal}"])
    before = {number: signal.signal(number, signals.note) for number in numbers}
    let_in()
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold signals back, also from processes that are started meanwhile, until these `let_in` what has come.

    A signal to all processes of a run would end one that has only begun to import.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_in() -> None:
    """Let signals in that were `held_back` from this process when it was started."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)

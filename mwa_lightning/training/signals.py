"""Signals that ask a run to save and end: SIGTERM, and the one that SLURM sends ahead of a time limit.

A handler may run anywhere, in mid-step and in mid-save, so it only notes the signal. The run looks at places where it
can end: between the parts of the set-up, between two steps, between two batches of an evaluation. Where there is
nothing to save, in `mwa-eval` and at Ctrl-C, the handler ends it on the spot.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mwa_lightning.errors import Interrupted, Stopped

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


class Breaking(Signals):
    """Signals of which the first ends this process's work at once. Raises Stopped wherever that is just then."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Keep it too: a library may have caught what was raised. Processes that read data are no concern of it."""
        super().note(number, frame)
        if self.count == 1 and os.getpid() == self._process:
            raise Stopped(signal.Signals(number).name)


@contextmanager
def listening(requeue_signal: str, signals: Signals | None = None) -> Iterator[Signals]:
    """Note SIGTERM and SIG<requeue_signal> in place of dying of them; for the main thread of a command.

    Ctrl-C raises Interrupted.
    """
    signals = signals or Signals()
    numbers = (signal.SIGTERM, signal.Signals[f"SIG{requeue_signal}"])
    before: dict[int, Any] = {number: signal.signal(number, signals.note) for number in numbers}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody wants it otherwise, as nohup does
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    let_in()
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once more would only disturb the clearing away
    raise Interrupted


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

"""Signals that ask a run to save and end: SIGTERM, SIGHUP, and the one that SLURM sends ahead of a time limit.

A handler may run anywhere, in mid-step and in mid-save, so it only notes the signal. The run looks at places where it
can end: between the parts of the set-up, between two steps, between two batches of an evaluation. Where there is
nothing to save, the handler ends it on the spot: always in `mwa-eval`, and at Ctrl-C but for the training itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mwa_lightning.errors import Interrupted, Stopped

# What SLURM may be told to send (`sbatch --signal`): users have these for themselves.
REQUEUE_SIGNALS = ("USR1", "USR2")
# A terminal that is closed sends SIGHUP; `nohup` has it ignored, and it stays so.
_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *(signal.Signals[f"SIG{name}"] for name in REQUEUE_SIGNALS))

# Seconds until a signal is tried again that came where nothing can be raised.
_SOON = 0.01


class Signals:
    """What this process was told. Only `listening` lets signals in; without it nothing ever comes."""

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self.count = 0
        # What the first Ctrl-C says while it is noted as the others are; None where it ends the process on the spot.
        self.at_interrupt: str | None = None
        self.raised: Interrupted | Stopped | None = None  # on the spot, whatever a library has made of it
        self._process = os.getpid()

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C has ended the work on the spot."""
        return isinstance(self.raised, Interrupted)

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Keep the first signal; those that follow, such as SLURM's at the requeueing, ask for the same."""
        self.count += 1
        if self.noted is None:
            self.noted = signal.Signals(number)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C: note it, or raise Interrupted; a second one ends the process at once, whatever it is doing."""
        if os.getpid() != self._process:
            return  # one that reads data
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        Signals.note(self, number)
        if self.at_interrupt is None:
            self.raised = Interrupted()
            raise self.raised
        with contextlib.suppress(OSError):
            os.write(2, self.at_interrupt.encode())  # unlike print, it may come between the halves of another's line

    def send_again(self) -> None:
        """Have the signal come again that has just raised something in vain."""
        number = signal.SIGINT if self.interrupted else self.noted
        if number == signal.SIGINT:
            signal.signal(number, self.interrupt)
        self.count = 0
        threading.Timer(_SOON, os.kill, (self._process, number)).start()


class Breaking(Signals):
    """Signals of which the first ends this process's work at once. Raises Stopped wherever that is just then.

    While it is `noting`, at the next `check`; if none comes within PATIENCE seconds, since a disk does not answer, the
    process ends at once.
    """

    PATIENCE = 60.0

    @contextmanager
    def noting(self) -> Iterator[None]:
        """For work with threads or processes of its own, whose locks may be half taken wherever something is raised."""
        self.at_interrupt = ""
        self._last = threading.Timer(self.PATIENCE, self._leave)
        self._last.daemon = True
        try:
            yield
        finally:
            self._last.cancel()
        self.at_interrupt = None

    def check(self) -> None:
        """Raise Interrupted or Stopped if a signal was noted."""
        if self.noted is not None:
            raise Interrupted if self.noted == signal.SIGINT else Stopped(self.noted.name)

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Keep it too: a library may have caught what was raised. Processes that read data are no concern of it."""
        super().note(number, frame)
        if self.count > 1 or os.getpid() != self._process:
            return
        if self.at_interrupt is None:
            self.raised = Stopped(signal.Signals(number).name)
            raise self.raised
        self._last.start()

    def _leave(self) -> None:
        assert self.noted is not None
        with contextlib.suppress(OSError):
            os.write(
                2, f"stopped by {self.noted.name} while a file did not come; start again, it begins anew\n".encode()
            )
        os._exit(Stopped.exit_code)


@contextmanager
def listening(requeue_signal: str, signals: Signals | None = None) -> Iterator[Signals]:
    """Note SIGTERM, SIGHUP and SIG<requeue_signal> in place of dying of them; for the main thread of a command.

    Ctrl-C raises Interrupted, or is noted, as the signals say. Afterwards the others are ignored: a process whose work
    is done and that is about to end must not die of one, or SLURM would count a finished job as failed. A program that
    goes on has its handlers `put_back`.
    """
    signals = signals or Signals()
    numbers = [signal.SIGTERM, signal.Signals[f"SIG{requeue_signal}"]]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, signals.note)
    try:
        with interruptible(signals):
            let_in()
            yield signals
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def put_back() -> Iterator[None]:
    """Put the handlers back that were there before a command."""
    before = {number: signal.getsignal(number) for number in _ALL}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler not in (None, signal.getsignal(number)):
                signal.signal(number, handler)


@contextmanager
def interruptible(signals: Signals) -> Iterator[Signals]:
    """Have the signals take Ctrl-C. Raises Interrupted."""
    if threading.current_thread() is not threading.main_thread():
        with raised_again(signals):
            yield signals
        return
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    takes = before not in (None, signal.SIG_IGN)  # if not, somebody wants it otherwise, as nohup does
    if takes:
        signal.signal(signal.SIGINT, signals.interrupt)

    def again(lost: Any) -> None:
        """Python cannot raise it where it just was, such as in what it calls when a module is imported."""
        if lost.exc_value is None or lost.exc_value is not signals.raised:
            hook(lost)
        else:
            signals.send_again()

    sys.unraisablehook = again
    try:
        with raised_again(signals):
            yield signals
    finally:
        sys.unraisablehook = hook
        if takes:
            signal.signal(signal.SIGINT, before)


@contextmanager
def raised_again(signals: Signals) -> Iterator[None]:
    """What a signal has raised, in place of what a library has made of it."""
    try:
        yield
    except Exception as error:
        raised = signals.raised
        if raised is None or isinstance(error, type(raised)):
            raise
        raise type(raised)(*raised.args) from error


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


def hold_back() -> None:
    """Hold back what ends a run, for a command that is going to listen; Ctrl-C ends it as before."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ALL[1:])


def let_in() -> None:
    """Let signals in that were held back from this process, by itself or when it was started."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)


def end_if_held_back(message: str) -> None:
    """Raise Stopped if a signal waits that was held back; `message` says where the work stands, and what to do."""
    if waiting := signal.sigpending().intersection(_ALL[1:]):
        raise Stopped(f"stopped by {signal.Signals(min(waiting)).name} {message}")

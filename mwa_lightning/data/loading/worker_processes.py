"""The processes that load data: that they begin, and which signals end them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import wait
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from multiprocessing.process import BaseProcess
from types import TracebackType

from mwa_lightning.errors import DataError

log = logging.getLogger(__name__)

# Seconds that a process may take to begin, of one try after the other. It is forked, so it takes no more than a moment.
_PATIENCE = (20.0, 40.0, 80.0)
_LOOK = 1.0  # seconds between two looks whether the parent is there


class WorkerProcess(ForkProcess):
    """A loading process, which is forked anew if it does not begin.

    What other threads hold at the moment of a fork stays locked in the child for ever, and the run would wait for a
    batch as long. Before 3.12, Python itself has such a lock (python/cpython#112275), which threads of gloo take when
    they let go of tensors; torch has others (pytorch/pytorch#130610). The next fork meets another moment.
    """

    begun: int

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:  # noqa: N802 (Python's own name)
        """Fork, and wait until `begin` was called. Raises DataError if that does not come to be."""
        assert isinstance(process_obj, WorkerProcess)
        for patience in _PATIENCE:
            reader, process_obj.begun = os.pipe()
            try:
                forked = Popen(process_obj)
            finally:
                os.close(process_obj.begun)
            try:
                if wait([reader], patience):
                    return forked
                log.warning("a loading process did not begin within %.0f seconds: another takes its place", patience)
            except BaseException:
                _end(forked)
                raise
            finally:
                os.close(reader)
            _end(forked)
        raise DataError(
            f"data.num_workers: no loading process begins here, after {len(_PATIENCE)} tries: set it to 0, or take "
            "Python 3.12 or newer"
        )


class WorkerContext(ForkContext):
    """What a DataLoader takes its processes from (`multiprocessing_context`)."""

    Process = WorkerProcess


def begin(worker_id: int) -> None:
    """Say that a loading process has begun, and leave signals to its parent; a `worker_init_fn`.

    It ignores Ctrl-C, SIGHUP, SIGUSR1, SIGUSR2, and SIGTERM unless its parent sends it: a terminal signals all
    processes of a command, SLURM a whole tree of them, and a run whose loading processes are gone fails in mid-step.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS, where SIGTERM ends it whoever sends it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    end_with_parent()
    sys.excepthook = _unless_parent_left
    process = multiprocessing.current_process()
    assert isinstance(process, WorkerProcess)
    os.close(process.begun)


def _unless_parent_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A parent that ends on the spot may be about to take a batch: Python's own thread that hands it over says so."""
    if not isinstance(error, OSError | EOFError):
        sys.__excepthook__(kind, error, trace)


def end_with_parent() -> None:
    """Have this process end when its parent asks for it by SIGTERM, where that is blocked, or is gone, however it went.

    A killed parent tells nobody, and its children keep the pipes open that they would wait at for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_wait_for_parent, args=(parent.pid,), daemon=True).start()


def _wait_for_parent(parent: int | None) -> None:
    while os.getppid() == parent:
        if not hasattr(signal, "sigtimedwait") or signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
            time.sleep(_LOOK)
        elif (told := signal.sigtimedwait({signal.SIGTERM}, _LOOK)) is not None and told.si_pid == parent:
            break
    os._exit(0)


def _end(forked: Popen) -> None:
    forked.kill()
    forked.wait()

"""Loading processes and signals: what is meant for the run must not end them, or the run could not save."""

from __future__ import annotations

import os
import signal
import threading


def leave_signals_to_parent(worker_id: int) -> None:
    """Make a loading process ignore Ctrl-C, SIGUSR1, SIGUSR2, and SIGTERM unless its parent sends it.

    A `worker_init_fn`. A terminal signals all processes of a command, SLURM a whole tree of them, and a run whose
    loading processes are gone fails in mid-step.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)

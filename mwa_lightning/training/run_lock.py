"""The lock of a run directory: while one process writes a run, no other does.

A record lock (`fcntl.lockf`) on `.lock`, which the kernel lets go when its process ends, however it ends: nothing that
a dead process leaves has to be found out and cleared away. Network file systems pass such locks on to their server,
which lets go of those of a machine that has died. Unlike `flock`, forked processes that read data do not hold it too,
and so cannot outlive the run with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from mwa_lightning.errors import ConfigError
from mwa_lightning.whole_files import writing

log = logging.getLogger(__name__)

LOCK = ".lock"
# Seconds that a server of files may take to see that another machine has died: with NFS 4 it is 90, with Lustre 100.
PATIENCE = 150.0
_LOOK = 1.0
_TAKEN = (errno.EACCES, errno.EAGAIN)
_HOST = socket.gethostname()


class RunLock:
    """Held from `take` to the end of the `with` block, if it is taken at all; for the one process that writes.

    What stands in `.lock` tells others whom they met.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a disk that has gone
                if _is_file_of(self.path, self._file):
                    self.path.unlink()  # while it is held: whoever opened it meanwhile sees that it is gone
            os.close(self._file)
            self._file = None

    @property
    def held(self) -> bool:
        """Whether the directory is ours."""
        return self._file is not None

    def take(self) -> None:
        """Take the lock of a directory that is there, or keep it.

        A holder on another machine may be dead without its file server knowing yet, so that one is waited for.
        Raises ConfigError if another process lives that holds it, StorageError if the file cannot be written.
        """
        end = time.monotonic() + PATIENCE
        told = False
        while (holder := self._try()) is not None:
            earlier = _earlier_life(holder)
            elsewhere = holder.get("host", _HOST) != _HOST
            late = time.monotonic() > end
            if earlier and late:
                self.path.unlink(missing_ok=True)  # SLURM has ended it, whatever the file server says
            elif late or not (earlier or elsewhere):
                gone = f"; if that machine is gone, delete {self.path}" if elsewhere else ""
                raise ConfigError(
                    f"run_dir={self.path.parent}: {_shown(holder)} is at this run: wait for its end, or choose another "
                    f"run_dir{gone}"
                )
            elif not told:
                told = True
                log.info("run_dir=%s: waiting to see whether %s still lives", self.path.parent, _shown(holder))
            time.sleep(_LOOK)

    def _try(self) -> dict[str, Any] | None:
        """What is known of the process that holds the lock; None if now it is ours."""
        while self._file is None:
            with writing(self.path):
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _TAKEN:
                    holder = _read(file)
                    os.close(file)
                    return holder
                log.warning(
                    "%s: this file system has no locks (%s): start no second process with this run_dir while one runs",
                    self.path.parent,
                    error.strerror,
                )
            if _is_file_of(self.path, file):
                self._file = file
                _write(file)
            else:
                os.close(file)  # its holder has removed it since
        return None


def _write(file: int) -> None:
    """Leave word of this process; on a full disk none."""
    about = {
        "host": _HOST,
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
    }
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(about).encode(), 0)


def _read(file: int) -> dict[str, Any]:
    """What the holder has left word of; empty if it has not yet."""
    with contextlib.suppress(OSError, ValueError):
        about = json.loads(os.pread(file, 4096, 0))
        return about if isinstance(about, dict) else {}
    return {}


def _is_file_of(path: Path, file: int) -> bool:
    """Whether the name still leads to the file that was opened by it."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _earlier_life(holder: dict[str, Any]) -> bool:
    """Whether the holder was this very SLURM job, before SLURM ended and requeued it."""
    job, restarts = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", 0))
    return job is not None and holder.get("job") == job and holder.get("restarts", restarts) < restarts


def _shown(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "another process"
    job = f", SLURM job {holder['job']}," if holder.get("job") else ""
    return f"process {holder['pid']} on {holder.get('host')}{job}"

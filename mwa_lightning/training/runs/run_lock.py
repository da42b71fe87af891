"""The lock of a run directory: while one process writes a run, no other does (see `file_locks`)."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mwa_lightning.errors import ConfigError
from mwa_lightning.system.file_locks import LOCK, Held, Taken, lock, others_in
from mwa_lightning.system.whole_files import writing

log = logging.getLogger(__name__)

# Seconds that a server of files may take to see that another machine has died: with NFS 4 it is 90, with Lustre 100.
PATIENCE = 150.0
_LOOK = 1.0
_HOST = socket.gethostname()


class RunLock:
    """Held from `take` to the end of the `with` block, if it is taken at all; for the one process that writes.

    What stands in `.lock` tells others whom they met.

    Args:
        directory: That of the run.
        within: Further directories in it where a killed process may have left temporary files.
    """

    def __init__(self, directory: Path, *, within: Sequence[Path] = ()) -> None:
        self.path = directory / LOCK
        self._directories = (directory, *within)
        self._held: Held | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None

    @property
    def held(self) -> bool:
        """Whether the directory is ours."""
        return self._held is not None

    def others(self) -> list[Path]:
        """What is in the directory that a start which was killed at its very beginning has not left."""
        return others_in(self.path.parent, self._held)

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
        if self._held is None:
            try:
                with writing(self.path):
                    self._held = lock(self.path)
            except Taken as taken:
                return taken.about
            self._held.begin(
                *self._directories,
                host=_HOST,
                pid=os.getpid(),
                job=os.environ.get("SLURM_JOB_ID"),
                restarts=int(os.environ.get("SLURM_RESTART_COUNT", 0)),
            )
        return None


def _earlier_life(holder: dict[str, Any]) -> bool:
    """Whether the holder was this very SLURM job, before SLURM ended and requeued it."""
    job, restarts = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", 0))
    return job is not None and holder.get("job") == job and holder.get("restarts", restarts) < restarts


def _shown(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "another process"
    job = f", SLURM job {holder['job']}," if holder.get("job") else ""
    return f"process {holder['pid']} on {holder.get('host')}{job}"

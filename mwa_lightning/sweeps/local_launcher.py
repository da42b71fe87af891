"""Jobs as processes of this machine."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

from omegaconf import DictConfig

from mwa_lightning.errors import ConfigError
from mwa_lightning.sweeps.folder import Job, SweepFolder
from mwa_lightning.sweeps.job_loop import Elsewhere, Running
from mwa_lightning.system.signals import held_back
from mwa_lightning.system.whole_files import writing
from mwa_lightning.training.distributed.cpus import THREADS, cpus_here

# Without the current directory among the places that modules come from.
TRAIN = (sys.executable, "-P", "-m", "mwa_lightning.cli.train")

# Seconds that a job which was asked to end may take.
_PATIENCE = 60.0


class LocalLauncher:
    """Starts each job as `mwa-train` with its own share of the threads, and of the GPUs where these are divided.

    A job's log is locked by the process that prints into it, so two sweeps in one folder share the jobs, and what a
    killed sweep has left running is not started a second time.

    Raises ConfigError if there are fewer GPUs than jobs at a time.
    """

    own = True

    def __init__(self, config: DictConfig, folder: SweepFolder) -> None:
        self.room = int(config.jobs)
        self._folder = folder
        self._slots: dict[int, Running] = {}
        self._threads = cpus_here(self.room).free  # the same for all jobs, which the others are no load to
        self._gpus = None if config.gpus is None else [int(gpu) for gpu in config.gpus]
        if self._gpus is not None and len(self._gpus) < self.room:
            raise ConfigError(
                f"launcher.gpus={self._gpus}: fewer than launcher.jobs={self.room}; give more, or lower launcher.jobs"
            )

    def find(self, job: Job) -> Running | None:
        """The job, if its log is locked."""
        return Elsewhere(lambda: self._busy(job)) if self._busy(job) else None

    def start(self, jobs: Sequence[Job]) -> list[Running | None]:
        """Start jobs; None for one whose log another process has locked."""
        return [self._start(job) for job in jobs]

    def _start(self, job: Job) -> Running | None:
        with writing(self._folder.log(job)):
            log = self._folder.log(job).open("ab")
        with log:
            if not _lock(log):
                return None
            taken = [slot for slot, process in self._slots.items() if process.poll() is None]
            slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
            with held_back():
                process = subprocess.Popen(
                    [*TRAIN, *self._folder.command(job)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment(slot),
                )
        self._slots[slot] = LocalProcess(process)
        return self._slots[slot]

    def _environment(self, slot: int) -> dict[str, str]:
        """That of this process, with a share of the threads and GPUs; a job in an allocation is not SLURM's task."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        if self.room > 1:  # one job alone looks for itself what is free
            environment.setdefault(THREADS, str(self._threads))
        if self._gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self._gpus[slot :: self.room]))
        return environment

    def _busy(self, job: Job) -> bool:
        log = self._folder.log(job)
        if not log.is_file():
            return False
        with log.open("ab") as file:
            return not _lock(file)


class LocalProcess:
    """A process that was started here."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self._process = process
        self._asked: float | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._asked is not None and time.monotonic() > self._asked + _PATIENCE:
            self._process.kill()
        return self._process.poll()

    def end(self) -> None:
        """Send SIGTERM, and SIGKILL to one that does not end from it."""
        self._process.terminate()
        self._asked = time.monotonic()


def _lock(file: IO[bytes]) -> bool:
    """Lock a file for as long as this opening of it lives, in child processes too; False if another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

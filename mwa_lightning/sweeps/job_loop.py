"""Carrying out the jobs of a sweep: what a launcher is, and the loop that keeps it busy."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from mwa_lightning.errors import Interrupted, NotFinite, NotLearning, Stopped, UserError
from mwa_lightning.report.terminal import say
from mwa_lightning.sweeps.folder import Job, SweepFolder
from mwa_lightning.system.signals import Signals, listening

# Seconds between two looks at the processes.
LOOK = 0.2


class Running(Protocol):
    """A job that has been started, here or by an earlier start of the sweep."""

    def poll(self) -> int | None:
        """The exit code once the job has ended, None before; 0 where only the run directory can tell."""

    def end(self) -> None:
        """Ask the job to end now; what it has left in its run directory stays readable."""


class Launcher(Protocol):
    """Where jobs run. `room` is the number of them that run at a time."""

    room: int
    # Whether jobs end with the process that started them; others are found again by the next start, and wait for room
    # by themselves.
    own: bool

    def find(self, job: Job) -> Running | None:
        """The job, if an earlier start left it running or another process is at it."""

    def start(self, jobs: Sequence[Job]) -> list[Running | None]:
        """Start jobs; None for one that another process has taken up meanwhile."""


def counted(count: int, noun: str) -> str:
    """A number of things, such as 1 job or 2 jobs."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


class JobsFailed(UserError):  # noqa: N818 (the jobs' own messages are the errors)
    """Jobs of a sweep failed; the exit code is that of the first of them."""

    def __init__(self, failed: dict[int, int], *, total: int, folder: SweepFolder) -> None:
        self.exit_code = next((code for code in failed.values() if code > 0), 1)
        numbers = ", ".join(map(str, failed))
        log = folder.path / f"{next(iter(failed))}.log"
        super().__init__(
            f"{len(failed)} of {counted(total, 'job')} failed ({numbers}): see {log}; with run_dir={folder.path} "
            f"{'it is' if len(failed) == 1 else 'they are'} started again"
        )


def carry_out(jobs: Sequence[Job], folder: SweepFolder, launcher: Launcher) -> None:
    """Run the jobs that are not through, and wait for them; one that fails does not stop the others.

    Raises JobsFailed at the end if any failed, Stopped or Interrupted at a signal.
    """
    waiting = [job for job in jobs if not folder.run(job).finished]
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    say(f"sweep of {counted(len(jobs), 'job')}, {len(jobs) - len(waiting)} through before: {folder.path}")
    running: list[tuple[Job, Running]] = []
    failed: dict[int, int] = {}
    with told(launcher) as signals:
        try:
            while waiting or running:
                end_if_told(signals, folder, launcher)
                waiting = _fill(waiting, running, folder, launcher, common)
                for pair in list(running):
                    job, process = pair
                    code = process.poll()
                    if code is None:
                        continue
                    end_if_told(signals, folder, launcher)  # a terminal tells the jobs too
                    running.remove(pair)
                    if folder.run(job).finished:
                        say(f"job {job.number} through")
                    elif isinstance(process, Elsewhere):
                        waiting.append(job)  # its process, not ours, ended on the way
                    else:
                        failed[job.number] = code or 1
                        folder.note(job.number, failed=how(code))
                        say(f"job {job.number} {how(code)}: {last_line(folder, job)}")
                time.sleep(LOOK)
        except BaseException:
            if launcher.own:
                end_all([process for _, process in running])
            raise
    # Another process may have come through with what failed here.
    left = {job.number: failed[job.number] for job in jobs if job.number in failed and not folder.run(job).finished}
    if left:
        raise JobsFailed(dict(sorted(left.items())), total=len(jobs), folder=folder)


class Elsewhere:
    """A job that another process is at, as long as `busy` says so."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy

    def poll(self) -> int | None:
        """None while the other process is at it."""
        return None if self._busy() else 0

    def end(self) -> None:
        """Nothing: it is not ours."""


def end_all(processes: Sequence[Running], *, patience: float = 90.0) -> None:
    """End jobs and wait until they have ended, at most `patience` seconds."""
    for process in processes:
        process.end()
    limit = time.monotonic() + patience
    while any(process.poll() is None for process in processes) and time.monotonic() < limit:
        time.sleep(LOOK)


@contextmanager
def told(launcher: Launcher) -> Iterator[Signals]:
    """Note SIGTERM, SIGUSR1 and Ctrl-C: they end a sweep where it looks, not while it starts a job or writes."""
    signals = Signals()
    jobs = "its jobs save and end, then the sweep" if launcher.own else "the sweep ends, its jobs go on"
    signals.at_interrupt = f"Ctrl-C: {jobs}; once more ends all at once\n"
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    with listening("USR1", signals):
        yield signals


def end_if_told(signals: Signals, folder: SweepFolder, launcher: Launcher) -> None:
    """Raise Stopped, or Interrupted, if a signal has come."""
    if signals.noted is None:
        return
    jobs = "" if launcher.own else ", its jobs go on"
    message = f"stopped by {signals.noted.name}{jobs}; resume with run_dir={folder.path}"
    raise Interrupted(message) if signals.noted == signal.SIGINT else Stopped(message)


def how(code: int) -> str:
    """In what way a job has failed."""
    if code == NotFinite.exit_code:
        return f"diverged (exit code {code})"
    if code == NotLearning.exit_code:
        return f"did not learn (exit code {code})"
    return f"failed by signal {-code}" if code < 0 else f"failed (exit code {code})" if code else "failed"


def shown(job: Job, *, without: Collection[str] = ()) -> str:
    """The words of a job, as they are typed."""
    return shlex.join(word for word in job.overrides if word not in without)


def last_line(folder: SweepFolder, job: Job) -> str:
    """The last line that a job's process has printed."""
    log = folder.log(job)
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _fill(
    waiting: list[Job],
    running: list[tuple[Job, Running]],
    folder: SweepFolder,
    launcher: Launcher,
    common: set[str],
) -> list[Job]:
    """Start as many of the waiting jobs as there is room for, and return the others."""
    room = max(0, launcher.room - len(running)) if launcher.own else len(waiting)
    now, later = waiting[:room], waiting[room:]
    if not now:
        return later
    fresh: list[Job] = []
    with folder.locked():  # another process that works on this folder would start the same
        for job in now:
            found = launcher.find(job)
            if found is None and folder.run(job).finished:
                say(f"job {job.number} through, elsewhere")
            elif found is None:
                fresh.append(job)
            else:
                running.append((job, found))
                say(f"job {job.number} is running already")
        for job, process in zip(fresh, launcher.start(fresh) if fresh else [], strict=True):
            if process is None:
                later.append(job)
            else:
                running.append((job, process))
                folder.note(job.number, failed=None)
                say(f"job {job.number} started: {shown(job, without=common)}")
    return later

"""One process at a time writes a run; a dead one keeps nobody out. Holders are processes of their own."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mwa_lightning.errors import ConfigError
from mwa_lightning.training.runs import run_lock
from mwa_lightning.training.runs.run_lock import LOCK, RunLock

HOLD = """
import os, sys, time
from pathlib import Path
from mwa_lightning.training.runs.run_lock import RunLock

RunLock(Path(sys.argv[1])).take()
child = os.fork() if sys.argv[2:] == ["fork"] else 0
if child or len(sys.argv) == 2:
    print(child, flush=True)
time.sleep(60)
"""
# Enters and leaves a directory's lock again and again, and notes that in a file that all append to.
TAKE_TURNS = """
import os, sys, time
from pathlib import Path
from mwa_lightning.errors import ConfigError
from mwa_lightning.training.runs.run_lock import RunLock

journal = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
times = 0
while times < 20:
    try:
        with RunLock(Path(sys.argv[1])) as lock:
            lock.take()
            os.write(journal, f"{os.getpid()}\\n".encode())
            time.sleep(0.001)
            os.write(journal, f"{os.getpid()}\\n".encode())
            times += 1
    except ConfigError:
        pass
"""


@contextmanager
def holder(directory: Path, *words: str, **environment: str) -> Iterator[tuple[int, int]]:
    """A process that holds the lock; its id, and that of a child which it forked while it held it."""
    command = [sys.executable, "-c", HOLD, str(directory), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        yield process.pid, child
        process.kill()


def dies(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)


def test_take__refused_while_the_holder_lives_and_free_once_it_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path, SLURM_JOB_ID="41") as (process, _):
        with pytest.raises(ConfigError) as caught, RunLock(tmp_path) as lock:
            lock.take()
        assert str(caught.value) == (
            f"run_dir={tmp_path}: process {process} on {socket.gethostname()}, SLURM job 41, is at this run: wait for "
            "its end, or choose another run_dir"
        )
        assert (tmp_path / LOCK).is_file()
        dies(process)
        with RunLock(tmp_path) as lock:
            lock.take()
            lock.take()
            assert lock.held
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_take__forked_children_of_a_killed_holder_do_not_hold_it(tmp_path: Path) -> None:
    """Those that load data live on for seconds when the run is killed."""
    with holder(tmp_path, "fork") as (process, child):
        dies(process)
        os.kill(child, 0)
        with RunLock(tmp_path) as lock:
            lock.take()
        os.kill(child, signal.SIGKILL)


def test_take__processes_that_come_and_go_never_meet(tmp_path: Path) -> None:
    """The file is removed each time: nobody may lock one that has no name any more."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", TAKE_TURNS, str(tmp_path / "run"), str(tmp_path / "journal")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    lines = (tmp_path / "journal").read_text().split()
    assert len(lines) == 3 * 20 * 2
    assert lines[::2] == lines[1::2]


def elsewhere(directory: Path, **about: object) -> None:
    """Have the holder of this machine look like one of another, which cannot be had here."""
    (directory / LOCK).write_text(json.dumps({"host": "node7", "pid": 3, "job": "41", "restarts": 0} | about))


def test_take__a_holder_on_another_machine_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its file server may not know yet that it is dead."""
    monkeypatch.setattr(run_lock, "_LOOK", 0.05)
    caplog.set_level(logging.INFO)
    with holder(tmp_path) as (process, _):
        elsewhere(tmp_path)
        monkeypatch.setattr(run_lock, "PATIENCE", 0.3)
        begin = time.monotonic()
        with pytest.raises(ConfigError, match=f"if that machine is gone, delete {tmp_path / LOCK}"):
            RunLock(tmp_path).take()
        assert time.monotonic() - begin >= 0.3
        monkeypatch.setattr(run_lock, "PATIENCE", 60.0)
        threading.Timer(0.3, dies, [process]).start()
        with RunLock(tmp_path) as lock:
            lock.take()
    shown = "process 3 on node7, SLURM job 41,"
    assert caplog.messages == [f"run_dir={tmp_path}: waiting to see whether {shown} still lives"] * 2


def test_take__the_same_job_before_it_was_requeued_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the file server never lets go; another job would be."""
    monkeypatch.setattr(run_lock, "_LOOK", 0.05)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.3)
    with holder(tmp_path):
        elsewhere(tmp_path)
        monkeypatch.setenv("SLURM_JOB_ID", "42")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with pytest.raises(ConfigError, match="node7"):
            RunLock(tmp_path).take()
        monkeypatch.setenv("SLURM_JOB_ID", "41")
        with RunLock(tmp_path) as lock:
            lock.take()
            about = json.loads((tmp_path / LOCK).read_text())
            assert (about["pid"], about["job"], about["restarts"]) == (os.getpid(), "41", 1)


def test_take__a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is none here, so the kernel's answer is put in."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with RunLock(tmp_path) as lock:
        lock.take()
    assert caplog.messages == [
        f"{tmp_path}: this file system has no locks (No locks available): start no second process that writes "
        "there while one runs"
    ]

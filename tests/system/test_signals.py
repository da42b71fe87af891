"""A terminal that is closed: what listens hears it, and what `nohup` has started does not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mwa_lightning.system.signals import listening, put_back


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    with put_back():
        yield


def test_listening__a_closed_terminal_is_noted() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with listening("USR1") as signals:
        signal.raise_signal(signal.SIGHUP)
    assert signals.noted == signal.SIGHUP
    signal.raise_signal(signal.SIGHUP)  # a process that is about to end does not die of it


def test_listening__what_nohup_has_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with listening("USR1") as signals:
        signal.raise_signal(signal.SIGHUP)
    assert signals.noted is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


# Notes SIGTERM while a disk does not answer; what it sends itself comes before it waits.
STUCK = """
import os, signal
from mwa_lightning.system.signals import Breaking, listening
Breaking.PATIENCE = 0.3
with listening("USR1", signals := Breaking()), signals.noting():
    os.kill(os.getpid(), signal.SIGTERM)
    os.read(os.pipe()[0], 1)
"""


def test_breaking__ends_a_process_whose_disk_does_not_answer() -> None:
    ended = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 75
    assert ended.stderr == "stopped by SIGTERM while a file did not come; start again, it begins anew\n"

"""A terminal that is closed: what listens hears it, and what `nohup` has started does not."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from mwa_lightning.training.signals import listening, put_back


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

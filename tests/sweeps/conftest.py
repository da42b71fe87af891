"""Launchers of short processes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mwa_lightning.sweeps import local_launcher as local
from mwa_lightning.sweeps.folder import SweepFolder
from mwa_lightning.sweeps.local_launcher import LocalLauncher
from mwa_lightning.system.signals import put_back

SHORT = (sys.executable, str(Path(__file__).with_name("short_run.py")))


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """The tests go on after a sweep, which a command ends with."""
    with put_back():
        yield


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[..., LocalLauncher]:
    """A local launcher whose jobs are `short_run.py`."""
    monkeypatch.setattr(local, "TRAIN", SHORT)

    def make(folder: SweepFolder, *, jobs: int = 1, gpus: list[int] | None = None) -> LocalLauncher:
        return LocalLauncher(OmegaConf.create({"name": "local", "jobs": jobs, "gpus": gpus}), folder)

    return make


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts what runs in its background deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

"""Tiny runs of `mwa-train` that something happens to, and what a run leaves that nothing happened to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mwa_lightning.cli import train as command
from tests.faults.fork_server import Server
from tests.leftovers import Left, left_by

Train = Callable[..., int]
Happen = Callable[..., Any]

OPTIONS = (
    "adapter.mid_dim=4",
    "adapter.enhancer_dim=4",
    "adapter.dropout=0.1",
    "trainer.max_epochs=3",
    "training.checkpoint_every_n_steps=2",
    "callbacks.progress_bar=false",
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tensors this small are faster on one thread; and the same number of threads gives the same bytes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_command(tiny_run: list[str]) -> list[str]:
    """What follows `mwa-train` in these tests: nine steps, a checkpoint after every second and after each epoch."""
    return [*tiny_run, *OPTIONS]


@pytest.fixture
def train(tiny_command: list[str]) -> Train:
    """`mwa-train` in this process; returns its exit code."""
    return lambda *arguments: command.main([*tiny_command, *arguments])


@pytest.fixture(scope="session")
def whole(tiny_command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert command.main([*tiny_command, f"run_dir={run}"]) == 0
    return run


class Disturbed:
    """A run that something happens to: how it fails, and that it then goes on to the end of one left alone.

    Args:
        run: Its directory.
        train: `mwa-train`.
        whole: The directory of a run that nothing happened to.
        capsys: What is said on the terminal.
    """

    def __init__(self, *, run: Path, train: Train, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run, self._train, self._whole, self._capsys = run, train, whole, capsys

    def fails(self, *options: str, code: int = 2) -> str:
        """Start it; the one line of the mistake that it ends with."""
        assert self._train(*options, f"run_dir={self.run}") == code
        (line,) = self._capsys.readouterr().err.splitlines()
        return line

    def ends(self, *options: str) -> None:
        """Start it; it ends with the bytes and figures of the other."""
        assert self._train(*options, f"run_dir={self.run}") == 0
        assert left_by(self.run) == left_by(self._whole)

    @property
    def saved_step(self) -> int:
        """The step of its last checkpoint."""
        state = torch.load(self.run / "checkpoints" / "last.ckpt", weights_only=True)
        return int(state["global_step"])

    @property
    def log(self) -> str:
        """What all starts have logged."""
        return (self.run / "train.log").read_text()


@pytest.fixture
def disturbed(train: Train, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Disturbed:
    """A run for something to happen to."""
    return Disturbed(run=tmp_path / "run", train=train, whole=whole, capsys=capsys)


@pytest.fixture
def server() -> Iterator[Server]:
    """Starts commands as processes of their own, one at a time."""
    server = Server()
    yield server
    server.close()


class _Happening(logging.Handler):
    def __init__(self, line: str, what: Callable[[], Any]) -> None:
        super().__init__()
        self.line, self.what, self.happened = line, what, False

    def emit(self, record: logging.LogRecord) -> None:
        if self.line in record.getMessage() and not self.happened:
            self.happened = True
            self.what()


@contextmanager
def happening(line: str, what: Callable[[], Any]) -> Iterator[None]:
    """Have something happen as soon as the run logs a line with these words, in the process that logs it."""
    handler = _Happening(line, what)
    logger = logging.getLogger("mwa_lightning")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert handler.happened, line


@pytest.fixture(name="left_by")
def _left_by() -> Callable[[Path], Left]:
    return left_by


@pytest.fixture(name="happening")
def _happening() -> Happen:
    return happening

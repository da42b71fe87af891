"""Tiny runs of `mwa-train` that something happens to, and what a run leaves that nothing happened to."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from mwa_lightning.cli import train as command
from tests.faults.fork_server import Server

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


class Left(NamedTuple):
    """The bytes of the best epoch, the figures, the table's rows, and the bytes of the last epoch; but no times."""

    adapter: bytes
    figures: dict[str, float]
    rows: list[dict[str, str]]
    last: dict[str, bytes]


def left_by(run: Path) -> Left:
    """What a run is compared by."""
    figures = json.loads((run / "metrics.json").read_text())
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if not row["name"].startswith("time/")]
    kept = {name: value for name, value in figures.items() if not name.startswith("time/")}
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    last = {name: tensor.numpy().tobytes() for name, tensor in state["state_dict"].items()}
    for key, moments in state["optimizer_states"][0]["state"].items():
        last |= {f"{key}.{name}": tensor.numpy().tobytes() for name, tensor in moments.items()}
    return Left((run / "adapter.safetensors").read_bytes(), kept, rows, last)


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
def _left_by() -> Callable[[Path], Any]:
    return left_by


@pytest.fixture(name="happening")
def _happening() -> Happen:
    return happening

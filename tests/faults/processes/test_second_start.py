"""A second `mwa-train` with the run directory of one that lives, and of one that was killed."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fork_server import Server

Train = Callable[..., int]


def snapshot(run: Path) -> dict[str, bytes]:
    """Every file of a directory."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_second_start__is_refused_changes_nothing_and_goes_on_once_the_first_is_killed(
    server: Server,
    tiny_command: list[str],
    train: Train,
    whole: Path,
    left_by: Callable[[Path], Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, log = tmp_path / "run", tmp_path / "run" / "train.log"
    server.start("train", [*tiny_command, "data.num_workers=1", f"run_dir={run}"], tmp_path / "output.txt")
    while not log.is_file() or "epoch 2: training" not in log.read_text():
        assert not server.ended(), (tmp_path / "output.txt").read_text()
        time.sleep(0.002)
    os.kill(server.process, signal.SIGSTOP)  # it lives, and leaves its files as they are
    before = snapshot(run)
    assert train(f"run_dir={run}") == 2
    assert capsys.readouterr().err == (
        f"mwa-train: error: run_dir={run}: process {server.process} on {socket.gethostname()} is at this run: wait for "
        "its end, or choose another run_dir\n"
    )
    assert snapshot(run) == before
    os.kill(server.process, signal.SIGKILL)
    assert server.wait() == signal.SIGKILL
    assert train(f"run_dir={run}") == 0
    assert left_by(run) == left_by(whole)
    assert not [path for path in run.rglob(".*") if path.is_file()]

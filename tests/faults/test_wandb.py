"""A server of Weights & Biases that does not answer or goes, an account that is not there, and a run that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.wandb_server import Server, serving

Train = Callable[..., int]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Server]]:
    with serving(Server, monkeypatch, tmp_path / "home") as own:
        yield own


@pytest.fixture
def nobody_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """W&B is looked for at a port of this machine where nothing listens."""
    import wandb

    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()  # it remembers who was logged in
    yield
    wandb.teardown()


@pytest.mark.slow
def test_unreachable__the_run_goes_on_and_keeps_its_figures(
    nobody_answers: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    whole: Path,
    train: Train,
    left_by: Callable[..., Any],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    run = tmp_path / "run"
    assert train(f"run_dir={run}", "logger=wandb", "logger.mode=online") == 0
    log = (run / "train.log").read_text()
    assert "WARNING W&B does not answer (" in log
    assert f"its metrics are kept in {run / 'wandb'}; `wandb sync` sends them" in log
    identity = (run / "wandb" / "id").read_text()
    (file,) = run.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb")
    assert b"val/mean_recall" in file.read_bytes()
    assert left_by(run) == left_by(whole)


@pytest.mark.slow
def test_no_account__is_told_before_anything_is_trained(
    nobody_answers: None, tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"run_dir={tmp_path / 'run'}", "logger=wandb", "logger.mode=online") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mwa-train: error: logger=wandb: nobody is logged in to W&B here: run `wandb login`, set")
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["errors", "refused", "silent", "garbage", "noise"])
def test_server_goes__the_run_ends_as_ever_and_soon(
    manner: str,
    server: type[Server],
    tmp_path: Path,
    whole: Path,
    train: Train,
    left_by: Callable[..., Any],
    happening: Callable[..., Any],
    wandb_figures: Callable[[Path], list[Any]],
) -> None:
    run, times = tmp_path / "run", []

    def go() -> None:
        server.go(manner)
        times.append(time.monotonic())

    with happening("epoch 2: validation", go):
        assert train(f"run_dir={run}", "logger=wandb", "logger.mode=online") == 0
    taken = time.monotonic() - times[0]
    assert left_by(run) == left_by(whole)
    warnings = [line for line in (run / "train.log").read_text().splitlines() if " WARNING W&B" in line]
    assert len(warnings) == 1, warnings
    assert "WARNING W&B does not have everything (the adapter was not taken: " in warnings[0]
    assert warnings[0].endswith(f"the run directory has; `wandb sync` sends what is in {run / 'wandb'}")
    # All figures are kept for `wandb sync`, those of the time before too.
    assert {step for step, name, _ in wandb_figures(run) if name == "train/loss"} == set(range(9))
    # The client's own patience with a request, that at the end, and the rest of the training.
    assert taken < 90


@pytest.mark.slow
def test_killed__each_figure_is_in_one_of_the_files(
    tiny_command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Path,
    left_by: Callable[..., Any],
    wandb_figures: Callable[[Path], list[tuple[int, str, float]]],
) -> None:
    """SIGKILL in the middle of an epoch: steps are made again, and what W&B has of them is not sent again."""
    run = tmp_path / "run"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    command = [sys.executable, "-m", "mwa_lightning.cli.train", *tiny_command, f"run_dir={run}"]
    command += ["logger=wandb", "logger.mode=offline", "training.checkpoint_every_n_steps=null"]
    output = (tmp_path / "output").open("w")
    process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})
    table = run / "metrics.csv"
    while process.poll() is None and not (table.is_file() and "\n4,1,train/loss" in table.read_text()):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = subprocess.run(
        command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert again.returncode == 0, (tmp_path / "output").read_text()
    assert "resuming from" in (run / "train.log").read_text()
    assert left_by(run) == left_by(whole)
    assert len(list(run.glob("wandb/offline-run-*"))) == 2
    figures = [row for row in wandb_figures(run) if row[1] != "epoch"]
    counts = Counter((step, name) for step, name, _ in figures)
    assert set(counts.values()) == {1}
    rows = {(int(row["step"]), row["name"], float(row["value"])) for row in left_by(run).rows}
    assert {row for row in figures if not row[1].startswith("time/")} == rows

"""A server of Weights & Biases that does not answer, and an account that is not there."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Train = Callable[..., int]


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
    assert f"its figures are kept in {run / 'wandb'}; `wandb sync` sends them" in log
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

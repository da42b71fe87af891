"""The table of figures, and the other loggers beside it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from mwa_lightning.training.fit import fit
from mwa_lightning.training.loggers import TableLogger, make_loggers
from mwa_lightning.training.run_directory import RunDirectory

MakeConfig = Callable[..., DictConfig]


def test_table__rows_repetition_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = TableLogger(path=path)
    table.log_metrics({"a": 0.1, "b": 2.0, "epoch": 0}, step=0)
    size = table.size
    table.log_metrics({"a": 0.1, "b": 2.0, "epoch": 0}, step=0)
    assert table.size == size
    table.log_metrics({"a": float("nan")}, step=1)
    assert path.read_text() == "step,epoch,name,value\n0,0,a,0.1\n0,0,b,2\n1,,a,nan\n"
    table.cut(size)
    TableLogger(path=path).log_metrics({"a": 1e-9, "epoch": 3}, step=7)
    assert path.read_text() == "step,epoch,name,value\n0,0,a,0.1\n0,0,b,2\n7,3,a,1e-09\n"


def test_make_loggers__tensorboard_beside_the_table(make_config: MakeConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    loggers = make_loggers(make_config("logger=tensorboard"), run)
    for logger in loggers:
        logger.log_metrics({"val/mean_recall": 50.0}, 0)
        logger.finalize("success")
    assert run.metrics_table.is_file()
    assert list((run.path / "tensorboard").glob("events.*"))


@pytest.mark.slow
def test_fit__wandb_offline(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run: its file lies in the run directory, and nothing knocked at W&B's door."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.setblocking(False)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{door.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        fit(make_config("logger=wandb", "logger.mode=offline", "trainer.max_epochs=1"))
        with pytest.raises(BlockingIOError):
            door.accept()
    run = tmp_path / "run"
    identity = (run / "wandb" / "id").read_text()
    (file,) = run.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb")
    content = file.read_bytes()
    for name in ("train/loss", "val/mean_recall", "betas"):  # figures, and the configuration
        assert name.encode() in content, name
    assert not (tmp_path / "home" / "wandb").exists()
    import wandb

    assert wandb.run is None  # closed, or the next run of this process would go on in it


def test_make_loggers__wandb_takes_the_id_of_its_agent(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B uses the agent's id whatever it is told, so a run that is gone on with by hand has to know it."""
    monkeypatch.setenv("WANDB_RUN_ID", "of_agent")
    runs = [RunDirectory(tmp_path / name) for name in ("alone", "swept")]
    for run in runs:
        run.create()
        make_loggers(make_config("logger=wandb", "logger.mode=disabled"), run)
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    alone, swept = ((run.path / "wandb" / "id").read_text() for run in runs)
    assert swept == "of_agent" != alone


def test_make_loggers__wandb_keeps_its_id(make_config: MakeConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    identities = {make_loggers(make_config("logger=wandb", "logger.mode=disabled"), run)[1].version for _ in range(2)}
    assert identities == {(run.path / "wandb" / "id").read_text()}

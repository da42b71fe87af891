"""The table of figures, and the other loggers beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

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


def test_make_loggers__wandb_keeps_its_id(make_config: MakeConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    identities = {make_loggers(make_config("logger=wandb", "logger.mode=disabled"), run)[1].version for _ in range(2)}
    assert identities == {(run.path / "wandb" / "id").read_text()}

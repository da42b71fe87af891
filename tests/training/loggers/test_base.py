"""Folders of W&B and TensorBoard in a run directory that are damaged, in the way or full: the run goes on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mwa_lightning.report.examples import Drawing
from mwa_lightning.training.loggers.base import LosableLogger
from mwa_lightning.training.loggers.making import TableLogger, close, make_loggers
from mwa_lightning.training.loggers.tensorboard_logger import LosableTensorBoardLogger
from mwa_lightning.training.loggers.wandb_logger import LosableWandbLogger
from mwa_lightning.training.loggers.wandb_server import unreachable
from mwa_lightning.training.runs.run_directory import RunDirectory

LOST = "; the run goes on, and its directory has everything"


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the run has warned of."""
    own = [record for record in caplog.records if record.name.startswith("mwa_lightning")]
    return [record.getMessage() for record in own if record.levelno >= logging.WARNING]


def fill(disk: Path) -> None:
    """Leave no room."""
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    return run


@pytest.fixture
def loggers(make_config: Callable[..., DictConfig], run: RunDirectory) -> Callable[[], list[Any]]:
    """Makes the loggers of another start of `logger=wandb logger.mode=offline`."""
    return lambda: make_loggers(make_config("logger=wandb", "logger.mode=offline"), run)


@pytest.mark.parametrize("damage", [b"", b"x/y", b"\xff\xfe", b"\0" * 8])
def test_identity__a_damaged_one_is_told_of_and_replaced(
    damage: bytes, loggers: Callable[[], list[Any]], run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    file = run.path / "wandb" / "id"
    first = loggers()[1].version
    assert file.read_text() == first
    file.write_bytes(damage)
    second = loggers()[1].version
    assert len(second) == 8
    assert second != first
    assert file.read_text() == second
    (line,) = warnings_in(caplog)
    assert line == f"{file} is damaged: W&B gets the run under a new id, with all metrics, without earlier images"


def test_identity__a_newline_does_no_harm(loggers: Callable[[], list[Any]], run: RunDirectory) -> None:
    first = loggers()[1].version
    (run.path / "wandb" / "id").write_text(f"{first}\n")
    assert loggers()[1].version == first


def in_the_way(run: Path) -> None:
    (run / "wandb").write_text("a file where a folder is to be")


def no_id(run: Path) -> None:
    (run / "wandb" / "id").mkdir(parents=True)
    (run / "wandb" / "id" / "file").touch()


def a_folder(run: Path) -> None:
    (run / "wandb" / "offline-run-1-x" / "run-x.wandb").mkdir(parents=True)
    (run / "wandb" / "id").write_text("x")


@pytest.mark.parametrize("damage", [in_the_way, no_id, a_folder])
def test_folder__that_cannot_be_used_costs_the_logger_alone(
    damage: Callable[[Path], None],
    loggers: Callable[[], list[Any]],
    run: RunDirectory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(run.path)
    assert [type(logger) for logger in loggers()] == [TableLogger]
    (line,) = warnings_in(caplog)
    assert line.startswith("W&B takes nothing more until the next start (")
    assert str(run.path / "wandb") in line
    assert line.endswith(LOST)


def test_opening__that_fails_costs_the_logger_alone(
    loggers: Callable[[], list[Any]], run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    table, logger = loggers()
    (run.path / "wandb" / "id").unlink()
    (run.path / "wandb").rmdir()
    in_the_way(run.path)
    assert hasattr(logger, "experiment")  # Lightning asks for it before it logs
    logger.log_hyperparams({"a": 1})
    logger.begin(0)
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_drawings("b", [Drawing(Image.new("RGB", (2, 2)), "c")], step=0)
    close([table, logger])
    (line,) = warnings_in(caplog)
    assert line.startswith("W&B takes nothing more until the next start (")
    assert line.endswith(LOST)


def test_unreachable__what_is_neither_server_nor_account_costs_the_logger_alone(
    run: RunDirectory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that W&B refuses, and a disk that takes nothing."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    (run.path / "tensorboard").write_text("a file where a folder is to be")
    several: list[LosableLogger] = [
        LosableWandbLogger(run=run, log_adapter=False, id="x/y", mode="online"),
        LosableTensorBoardLogger(run=run),
    ]
    assert [unreachable(logger) for logger in several] == ["", ""]
    assert [logger.lost for logger in several] == [True, True]
    first, second = warnings_in(caplog)
    assert first.startswith("W&B takes nothing more until the next start (Run ID cannot contain")
    assert "File exists" in second


def test_full_disk__is_told_in_one_line(
    loggers: Callable[[], list[Any]],
    run: RunDirectory,
    small_disk: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """W&B's own log stands there too."""
    (small_disk / "id").write_text("x")
    (run.path / "wandb").symlink_to(small_disk)
    fill(small_disk)
    several = loggers()
    for step in range(3):
        several[1].log_metrics({"a": 1.0}, step)
    close(several)
    (line,) = warnings_in(caplog)
    assert line.startswith("W&B ")
    assert "No space left on device" in line
    assert "Traceback" not in capfd.readouterr().err


def test_full_disk__tensorboard_is_told_of_in_one_line_and_has_all_later(
    run: RunDirectory, small_disk: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    (run.path / "tensorboard").symlink_to(small_disk)
    fill(small_disk)
    logger = LosableTensorBoardLogger(run=run)
    assert hasattr(logger, "experiment")
    close([logger])
    (line,) = warnings_in(caplog)
    assert line.startswith("TensorBoard takes nothing more until the next start ([Errno 28] No space left on device)")
    assert "Traceback" not in capfd.readouterr().err

    (small_disk / "ballast").unlink()
    TableLogger(path=run.metrics_table).log_metrics({"a": 1.5}, 0)
    again = LosableTensorBoardLogger(run=run)
    again.begin(1)
    close([again])
    events = EventAccumulator(str(small_disk))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(0, 1.5)]

"""Where the metrics of a run go: always a CSV file, besides it TensorBoard, Weights & Biases or another logger."""

from __future__ import annotations

import csv
import errno
import inspect
import io
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from mwa_lightning.errors import ConfigError, StorageError
from mwa_lightning.made import note_made
from mwa_lightning.system.whole_files import writing
from mwa_lightning.training.instantiating import TARGET, checked, instantiate
from mwa_lightning.training.loggers.base import LosableLogger, Outcome, never_stops_a_run, warn_of_loss
from mwa_lightning.training.runs.run_directory import RunDirectory

log = logging.getLogger(__name__)

FOLDER = "logger"  # in the run directory, of a logger of any class
COLUMNS = ("step", "epoch", "name", "value")


class TableLogger(Logger):
    """`metrics.csv`, append-only, one figure a row: step, epoch, name, value; repeated calls count once.

    A row a figure, because figures come at different times and a file that is only appended to cannot gain
    columns; `pandas.read_csv(...).pivot_table(index="step", columns="name", values="value")` makes the wide
    table. Steps count optimizer steps from 0. `cut` drops what was written after a checkpoint.
    """

    def __init__(self, *, path: Path) -> None:
        super().__init__()
        self.path = path
        self._latest: tuple[int | None, tuple[str, ...]] | None = None

    @property
    def name(self) -> str:
        return "table"

    @property
    def version(self) -> str:
        """None of its own: the run directory tells runs apart."""
        return ""

    @property
    def size(self) -> int:
        """Bytes written so far, for a checkpoint to note."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def settle(self) -> int:
        """Flush what was written so far to the disk; returns its bytes, for a checkpoint to note."""
        if self.size:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return self.size

    @rank_zero_only
    def cut(self, size: int) -> None:
        """Drop everything after the first `size` bytes."""
        if size < self.size:
            with self.path.open("r+b") as file:
                file.truncate(size)
        elif size > self.size:
            log.warning("%s is shorter than at the checkpoint: its last rows are lost, and the run goes on", self.path)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row for each figure, or none: raises StorageError if they cannot be written."""
        figures = dict(metrics)
        epoch = figures.pop("epoch", None)
        if (step, tuple(figures)) == self._latest:
            return
        self._latest = (step, tuple(figures))
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        size = self.size
        if not size:
            writer.writerow(COLUMNS)
        for name, value in figures.items():
            writer.writerow([step, "" if epoch is None else int(epoch), name, _number(value)])
        try:
            with writing(self.path), self.path.open("ab", buffering=0) as file:
                content = rows.getvalue().encode()
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if not size:
                note_made(self.path, grows=True)
        except StorageError:
            self.cut(size)
            raise

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in config.yaml."""


def make_loggers(config: DictConfig, run: RunDirectory) -> list[Logger]:
    """The table, and what `logger` asks for. Raises ConfigError if it is not installed or nobody is logged in."""
    loggers: list[Logger] = [TableLogger(path=run.metrics_table)]
    if TARGET in config.logger:
        loggers.append(_by_target(config.logger, run))
    elif config.logger.name == "tensorboard":
        from mwa_lightning.training.loggers.tensorboard_logger import LosableTensorBoardLogger

        try:
            loggers.append(LosableTensorBoardLogger(run=run))
        except ModuleNotFoundError as error:
            raise ConfigError("logger=tensorboard: tensorboard is not installed; `pip install tensorboard`") from error
    elif config.logger.name == "wandb" and config.logger.mode != "disabled":
        try:
            from mwa_lightning.training.loggers.wandb_logger import make_wandb_logger
        except ModuleNotFoundError as error:
            raise ConfigError("logger=wandb: wandb is not installed; `pip install wandb`") from error

        try:
            loggers.append(make_wandb_logger(config, run))
        except (OSError, StorageError) as error:  # of what is in the way in its folder
            warn_of_loss("W&B", error)
    return loggers


def check_logger(node: DictConfig) -> None:
    """Raise ConfigError if a logger names a class that cannot be had, or is no Logger of Lightning's."""
    if TARGET in node:
        checked(node, group="logger", base=Logger, further=("save_dir",))


def _by_target(node: DictConfig, run: RunDirectory) -> Logger:
    """A logger of any class; where it takes a `save_dir` and is given none, it writes to a folder of the run directory.

    It has that folder to itself: Lightning's CSVLogger may remove a metrics.csv that it finds.
    """
    kind, options = checked(node, group="logger", base=Logger, further=("save_dir",))
    takes_folder = "save_dir" in inspect.signature(kind).parameters and "save_dir" not in options
    further = {"save_dir": str(run.path / FOLDER)} if takes_folder else {}
    logger: Logger = instantiate(node, group="logger", base=Logger, **further)
    never_stops_a_run(logger, title=kind.__name__)
    return logger


def conclude(loggers: Sequence[Logger], outcome: Outcome) -> None:
    """Tell the loggers beside the table what the run came to."""
    for logger in loggers:
        if isinstance(logger, LosableLogger):
            logger.log_outcome(outcome)


def close(loggers: Sequence[Logger], exit_code: int = 0) -> None:
    """Write what the loggers still hold, of a run that ends by an exit code; one that a signal has stopped goes on."""
    for logger in loggers:
        if isinstance(logger, LosableLogger):
            logger.end(exit_code)


def _number(value: float) -> str:
    """The shortest text that reads back as the same number; whole numbers without a point."""
    number = float(value)
    return str(int(number)) if math.isfinite(number) and number.is_integer() and abs(number) < 2**53 else repr(number)

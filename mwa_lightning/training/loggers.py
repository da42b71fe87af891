"""Where the figures of a run go: always a CSV file, besides it TensorBoard or Weights & Biases."""

from __future__ import annotations

import csv
import math
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from mwa_lightning.errors import ConfigError, Stopped
from mwa_lightning.training.run_directory import RunDirectory, write_atomically
from mwa_lightning.training.signals import held_back

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
        """The kind of logger."""
        return "table"

    @property
    def version(self) -> str:
        """None of its own: the run directory tells runs apart."""
        return ""

    @property
    def size(self) -> int:
        """Bytes written so far, for a checkpoint to note."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @rank_zero_only
    def cut(self, size: int) -> None:
        """Drop everything after the first `size` bytes."""
        if size < self.size:
            with self.path.open("r+b") as file:
                file.truncate(size)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row for each figure."""
        figures = dict(metrics)
        epoch = figures.pop("epoch", None)
        if (step, tuple(figures)) == self._latest:
            return
        self._latest = (step, tuple(figures))
        begin = not self.size
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if begin:
                writer.writerow(COLUMNS)
            for name, value in figures.items():
                writer.writerow([step, "" if epoch is None else int(epoch), name, _number(value)])

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in config.yaml."""


def make_loggers(config: DictConfig, run: RunDirectory) -> list[Logger]:
    """The table, and what `logger` asks for. Raises ConfigError if it cannot be had."""
    loggers: list[Logger] = [TableLogger(path=run.metrics_table)]
    if config.logger.name == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        try:
            loggers.append(TensorBoardLogger(save_dir=run.path, name="", version="tensorboard"))
        except ModuleNotFoundError as error:
            raise ConfigError("logger=tensorboard: tensorboard is not installed; `pip install tensorboard`") from error
    elif config.logger.name == "wandb":
        loggers.append(_weights_and_biases(config, run))
    return loggers


def close(loggers: Sequence[Logger], *, stopped: bool = False) -> None:
    """Write what the loggers still hold. W&B's run ends here: another one of this process must not go on in it.

    A run that was `stopped` by a signal W&B shows as pre-empted, until it goes on.
    """
    for logger in loggers:
        if not stopped:
            logger.finalize("success")
        if isinstance(logger, WandbLogger):
            if stopped:
                logger.experiment.mark_preempting()
            logger.experiment.finish(exit_code=Stopped.exit_code if stopped else 0)


def _weights_and_biases(config: DictConfig, run: RunDirectory) -> Logger:
    """A run of W&B that keeps its id as long as the run directory lives."""
    identity = run.path / "wandb" / "id"
    if run.writes and not identity.is_file():
        identity.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(identity, secrets.token_hex(4).encode())
    try:
        logger = WandbLogger(
            name=run.path.name,
            save_dir=run.path,
            id=identity.read_text() if run.writes else None,
            project=config.logger.project,
            entity=config.logger.entity,
            mode=config.logger.mode,
            resume="allow",
        )
        if run.writes:
            # Starts W&B's own process, deaf to signals that SLURM sends to all: the run ends it after it has saved.
            with held_back():
                _ = logger.experiment
        return logger
    except ModuleNotFoundError as error:
        raise ConfigError("logger=wandb: wandb is not installed; `pip install wandb`") from error


def _number(value: float) -> str:
    """The shortest text that reads back as the same number; whole numbers without a point."""
    number = float(value)
    return str(int(number)) if math.isfinite(number) and number.is_integer() and abs(number) < 2**53 else repr(number)

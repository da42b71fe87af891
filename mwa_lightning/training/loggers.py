"""Where the figures of a run go: always a CSV file, besides it TensorBoard or Weights & Biases."""

from __future__ import annotations

import csv
import errno
import io
import logging
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from mwa_lightning.errors import ConfigError, Stopped, StorageError
from mwa_lightning.training.reaching import patience, unreachable
from mwa_lightning.training.run_directory import RunDirectory, write_atomically
from mwa_lightning.whole_files import writing

log = logging.getLogger(__name__)

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
            log.warning("%s is shorter than at the checkpoint: its last rows are lost, the run is not", self.path)

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
        except StorageError:
            self.cut(size)
            raise

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in config.yaml."""


class LosableWandbLogger(WandbLogger):
    """W&B's logger, whose own process may end before the run: SLURM may signal it too, while the run has to save."""

    lost = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass figures on as long as there is somebody who takes them; `metrics.csv` has them in any case."""
        if self.lost:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:
            self.lost = True
            log.warning("W&B takes no more figures until the next start (%s); metrics.csv has them", error)


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
        if isinstance(logger, LosableWandbLogger) and not logger.lost:
            if stopped:
                logger.experiment.mark_preempting()
            logger.experiment.finish(exit_code=Stopped.exit_code if stopped else 0)


def _weights_and_biases(config: DictConfig, run: RunDirectory) -> Logger:
    """A run of W&B that keeps its id as long as the run directory lives."""
    identity = run.path / "wandb" / "id"
    if run.writes and not identity.is_file():
        identity.parent.mkdir(parents=True, exist_ok=True)
        # In a sweep of W&B's own its agent has given the run an id, which W&B takes in place of ours.
        given = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
        write_atomically(identity, (given or secrets.token_hex(4)).encode())
    options = {
        "name": run.path.name,
        "save_dir": run.path,
        "id": identity.read_text() if run.writes else None,
        "project": config.logger.project,
        "entity": config.logger.entity,
        "resume": "allow",
    }
    try:
        logger = LosableWandbLogger(**options, mode=config.logger.mode, settings=patience())
    except ModuleNotFoundError as error:
        raise ConfigError("logger=wandb: wandb is not installed; `pip install wandb`") from error
    if run.writes and config.logger.mode == "online" and (problem := unreachable(logger)):
        log.warning(
            "W&B does not answer (%s): its figures are kept in %s; `wandb sync` sends them", problem, run.path / "wandb"
        )
        return LosableWandbLogger(**options, mode="offline")
    return logger


def _number(value: float) -> str:
    """The shortest text that reads back as the same number; whole numbers without a point."""
    number = float(value)
    return str(int(number)) if math.isfinite(number) and number.is_integer() and abs(number) < 2**53 else repr(number)

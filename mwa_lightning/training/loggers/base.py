"""What the loggers beside the table have in common: they take pictures and an outcome, and never stop a run."""

from __future__ import annotations

import csv
import functools
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities import rank_zero_only

from mwa_lightning.report.examples import Drawing
from mwa_lightning.training.runs.run_directory import RunDirectory

log = logging.getLogger(__name__)

Options = ParamSpec("Options")


class Outcome(NamedTuple):
    """What a run came to.

    Args:
        run: Its directory, complete.
        figures: Those of `metrics.json`.
        adapter: What `adapter.safetensors` says of itself.
        step: Number of the last optimizer step, from 0.
    """

    run: RunDirectory
    figures: Mapping[str, float]
    adapter: Mapping[str, Any]
    step: int


class LosableLogger(Logger):
    """A logger that may fail without harm, since `metrics.csv` and the run directory have everything."""

    title = "a logger"
    lost = False

    @property
    def experiment(self) -> Any:
        """What the library writes to, opened when it is first asked for; one that takes nothing once that failed."""
        if not self.lost:
            try:
                return self.open()
            except Exception as error:
                self.lose(error)
        return DummyExperiment()

    def open(self) -> Any:
        """What the library writes to, opened if it is not yet. Raises what the library raises."""
        return super().experiment  # type: ignore[misc] # of the library's class, which comes after this one

    def lose(self, error: Exception) -> None:
        """Take nothing more; the first time it is warned of, with the reason."""
        if not self.lost:
            self.lost = True
            warn_of_loss(self.title, error)

    def begin(self, step: int) -> None:
        """Hear which optimizer step, from 0, this start makes first."""

    @abstractmethod
    def log_drawings(self, name: str, drawings: Sequence[Drawing], *, step: int) -> None:
        """Show pictures of one kind, with their captions."""

    @abstractmethod
    def log_outcome(self, outcome: Outcome) -> None:
        """Take what the run came to."""

    @abstractmethod
    def end(self, exit_code: int) -> None:
        """Write what is still held, of a run that ends by an exit code; that of Stopped goes on later."""


LoggerT = TypeVar("LoggerT", bound=LosableLogger)


def losable(
    method: Callable[Concatenate[LoggerT, Options], None],
) -> Callable[Concatenate[LoggerT, Options], None]:
    """Call a method of a logger in the first process only; if it fails, warn once and call none of them any more."""

    @rank_zero_only
    @functools.wraps(method)
    def attempt(self: LoggerT, *arguments: Options.args, **options: Options.kwargs) -> None:
        if self.lost:
            return
        try:
            method(self, *arguments, **options)
        except Exception as error:
            self.lose(error)

    return attempt


def never_stops_a_run(logger: Logger, *, title: str) -> None:
    """Have the first failure of a logger of any class warned of, and the logger not called any more."""
    lost = False

    def guarded(method: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(method)
        def attempt(*arguments: Any, **options: Any) -> None:
            nonlocal lost
            if lost:
                return
            try:
                method(*arguments, **options)
            except Exception as error:
                lost = True
                warn_of_loss(title, error)

        return attempt

    for name in ("log_metrics", "log_hyperparams", "save", "finalize"):
        setattr(logger, name, guarded(getattr(logger, name)))


def warn_of_loss(title: str, error: Exception) -> None:
    """Say which logger takes nothing more, and why."""
    reason = error.__cause__ or error  # Lightning's own error says less than what it came from
    log.warning(
        "%s takes nothing more until the next start (%s); the run goes on, and its directory has everything",
        title,
        " ".join(str(reason).split()) or type(reason).__name__,
    )


def show_drawings(loggers: Sequence[Logger], name: str, drawings: Sequence[Drawing], *, step: int) -> None:
    """Give pictures to the loggers that take some."""
    for logger in loggers:
        if isinstance(logger, LosableLogger):
            logger.log_drawings(name, drawings, step=step)


def steps_of(table: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps of a `metrics.csv`, and their figures with the epoch, as `log_metrics` takes them."""
    rows: dict[tuple[int, str], dict[str, float]] = {}
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                rows.setdefault((int(row["step"]), row["epoch"]), {})[row["name"]] = float(row["value"])
    for (step, epoch), figures in rows.items():
        yield step, figures | ({"epoch": int(epoch)} if epoch else {})

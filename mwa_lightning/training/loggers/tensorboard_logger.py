"""Figures and pictures of a run for TensorBoard, in its run directory."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter

from mwa_lightning.report.examples import Drawing
from mwa_lightning.training.loggers.base import LosableLogger, Outcome, losable, steps_of
from mwa_lightning.training.runs.run_directory import RunDirectory

FOLDER = "tensorboard"

_hook = threading.excepthook


def _unless_of_tensorboard(thread: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread keeps its error for the next call, by which the logger is lost: no traceback besides."""
    if not type(thread.thread).__module__.startswith("tensorboard."):
        _hook(thread)


threading.excepthook = _unless_of_tensorboard


class _OrderedWriter(SummaryWriter):
    """Writes files that TensorBoard reads in the order in which they were made, also after the clock was set back.

    It sorts them by their names, which begin with the time; what it reads out of order it takes for expired.
    """

    def _get_file_writer(self) -> Any:
        names = (re.match(r"events\.out\.tfevents\.(\d+)\.", file.name) for file in Path(self.log_dir).glob("events.*"))
        latest = max((int(name[1]) for name in names if name), default=0)
        if self.file_writer is not None or latest < int(time.time()):
            return super()._get_file_writer()
        event_file_writer.time = SimpleNamespace(time=lambda: latest + 1)
        try:
            return super()._get_file_writer()
        finally:
            event_file_writer.time = time


class LosableTensorBoardLogger(LosableLogger, TensorBoardLogger):
    """TensorBoard's events, each figure of a step once, whatever the run went through.

    Of what an earlier start wrote after its last checkpoint, TensorBoard is told that it does not count; where earlier
    starts had another logger, it gets their figures from `metrics.csv`. Figures that have no curve (`test/...`,
    `params/...`) are written once, at the end, and make the table under HPARAMS.
    """

    title = "TensorBoard"

    def __init__(self, *, run: RunDirectory) -> None:
        super().__init__(save_dir=run.path, name="", version=FOLDER, default_hp_metric=False)
        self._table = run.metrics_table
        # Now, as Lightning opens a file before `begin`; one that a full disk did not take is empty.
        self._had_none = not any(file.stat().st_size for file in (run.path / FOLDER).glob("events.*"))
        self._latest: tuple[int | None, tuple[str, ...]] | None = None

    def open(self) -> Any:
        """TensorBoard's writer, in the first process; opened if it is not yet."""
        if rank_zero_only.rank == 0 and self._experiment is None:  # type: ignore[attr-defined]
            self._experiment = _OrderedWriter(log_dir=self.log_dir)
        return super().open()

    @losable
    def begin(self, step: int) -> None:
        """Have TensorBoard forget what comes from this step on in earlier files; if there are none, write the table."""
        start = Event(step=step, session_log=SessionLog(status=SessionLog.START))
        self.experiment.file_writer.add_event(start)
        if self._had_none:
            for at, figures in steps_of(self._table):
                self.log_metrics(figures, at)

    @losable
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write figures; repeated calls count once."""
        if (step, tuple(metrics)) != self._latest:
            self._latest = (step, tuple(metrics))
            super().log_metrics(metrics, step)

    @losable
    def log_hyperparams(self, params: dict[str, Any], *args: Any, **options: Any) -> None:  # type: ignore[override]
        """Take the configuration, for the table at the end."""
        super().log_hyperparams(params, *args, **options)

    @losable
    def log_drawings(self, name: str, drawings: Sequence[Drawing], *, step: int) -> None:
        """Write each picture under a number of its own."""
        for number, drawing in enumerate(drawings):
            tag = name if len(drawings) == 1 else f"{name}/{number}"
            self.experiment.add_image(tag, np.asarray(drawing.image), step, dataformats="HWC")

    @losable
    def log_outcome(self, outcome: Outcome) -> None:
        """Write the figures that have no curve, and the table of settings and figures."""
        figures = {
            name: value
            for name, value in outcome.figures.items()
            if not name.startswith("val/") and name != "time/step_s"
        }
        super().log_hyperparams(self.hparams, metrics=figures, step=outcome.step)

    @losable
    def save(self) -> None:
        super().save()

    @losable
    def finalize(self, status: str) -> None:
        """Write what is held, and close the file; a later figure opens another."""
        super().finalize(status)

    def end(self, exit_code: int) -> None:
        self.finalize("success")

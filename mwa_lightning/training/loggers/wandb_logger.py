"""A run in Weights & Biases: figures, pictures, configuration, outcome and adapter, under one id for all its starts."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from mwa_lightning.errors import Stopped
from mwa_lightning.report.examples import Drawing
from mwa_lightning.training.loggers.base import LosableLogger, Outcome, losable, steps_of
from mwa_lightning.training.loggers.wandb_files import figures_in
from mwa_lightning.training.loggers.wandb_server import first_line, patience, unreachable
from mwa_lightning.training.runs.run_directory import RunDirectory, write_atomically

log = logging.getLogger(__name__)

FOLDER = "wandb"
STEP = "trainer/global_step"  # Lightning's name of the axis
REFUSED_IN_ID = set(":;,#?/'")
BYTES_A_SECOND = 1e6  # how slowly an adapter may be sent before it is left to `wandb sync`


class LosableWandbLogger(LosableLogger, WandbLogger):
    """W&B's logger, whose server or own process may go while the run goes on: SLURM may signal the process too.

    A start that goes on looks at what the files of earlier ones hold: figures that it makes again are not sent again,
    and those that were lost with a killed process are sent from `metrics.csv`.

    Args:
        run: The run's directory.
        log_adapter: Whether the outcome brings the adapter as an artifact.
        options: What WandbLogger and `wandb.init` take.
    """

    title = "W&B"

    def __init__(self, *, run: RunDirectory, log_adapter: bool, **options: Any) -> None:
        super().__init__(save_dir=run.path, **options)
        self.log_adapter = log_adapter
        self._run = run
        self._before = figures_in(run.path / FOLDER, options["id"]) if run.writes else set()
        self._latest: tuple[int | None, tuple[str, ...]] | None = None
        self._missing: list[str] = []

    def open(self) -> Any:
        """W&B's run. What the library logs on a full disk is lost; logging would print a traceback for each line."""
        logging.raiseExceptions = False
        return super().open()

    @losable
    def begin(self, step: int) -> None:
        """Send what the table has, which is up to this step, and W&B has not."""
        for at, figures in steps_of(self._run.metrics_table):
            self.log_metrics(figures, at)

    @losable
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send figures that W&B does not have yet; repeated calls count once."""
        new = {name: value for name, value in metrics.items() if (step, name) not in self._before}
        if new.keys() - {"epoch"} and (step, tuple(new)) != self._latest:
            self._latest = (step, tuple(new))
            super().log_metrics(new, step)

    @losable
    def log_hyperparams(self, params: dict[str, Any]) -> None:  # type: ignore[override]
        super().log_hyperparams(params)

    @losable
    def log_drawings(self, name: str, drawings: Sequence[Drawing], *, step: int) -> None:
        """Send pictures that W&B does not have yet."""
        if drawings and (step, name) not in self._before:
            images = [wandb.Image(drawing.image, caption=drawing.caption) for drawing in drawings]
            self.experiment.log({name: images, STEP: step})

    @losable
    def log_outcome(self, outcome: Outcome) -> None:
        """Make the figures those of the summary, and send the adapter as an artifact of the run's name and id."""
        figures = {name: value for name, value in outcome.figures.items() if math.isfinite(value)}
        self.experiment.summary.update(figures)
        if self.log_adapter:
            try:
                self._log_adapter(outcome.run, {**outcome.adapter, "figures": figures})
            except Exception as error:
                self._missing.append(f"the adapter was not taken: {first_line(error)}")

    @rank_zero_only
    def end(self, exit_code: int) -> None:
        """Close W&B's run: another one of this process must not go on in it. A stopped one is shown as pre-empted.

        Warns, once, if W&B has not got everything.
        """
        if self._experiment is None:
            return
        try:
            if exit_code == Stopped.exit_code:
                self._experiment.mark_preempting()
            self._experiment.finish(exit_code=exit_code)
        except Exception as error:
            self._missing.append(first_line(error))
            with contextlib.suppress(Exception):  # or the library would try it again when Python ends
                wandb.teardown()
        if self._missing and not self.lost:
            log.warning(
                "W&B does not have everything (%s): the run directory has; `wandb sync` sends what is in %s",
                "; ".join(self._missing),
                self._run.path / FOLDER,
            )

    def _log_adapter(self, run: RunDirectory, metadata: dict[str, Any]) -> None:
        """Hand over the files; wait for large ones: the end of the run waits for all that is left, but not long."""
        artifact = wandb.Artifact(
            re.sub(r"[^\w.-]", "_", f"{run.path.name}-{self.version}", flags=re.ASCII)[-128:],
            type="adapter",
            description="What was trained: mwa-eval and mwa_lightning.load take adapter.safetensors",
            metadata=metadata,
        )
        files = [path for path in (run.adapter, run.config, run.metrics) if path.is_file()]
        for path in files:
            # Not copied to W&B's folders in the user's home, where a cluster has little room.
            artifact.add_file(str(path), skip_cache=True, policy="immutable")
        assert self._experiment is not None
        self._experiment.log_artifact(artifact)
        if self._wandb_init["mode"] == "online":
            artifact.wait(timeout=math.ceil(sum(path.stat().st_size for path in files) / BYTES_A_SECOND))


def make_wandb_logger(config: DictConfig, run: RunDirectory) -> LosableWandbLogger:
    """A run of W&B that keeps its id as long as the run directory lives.

    Raises ConfigError if nobody is logged in, OSError or StorageError if its folder cannot be used. A server that does
    not answer is warned of, and what it would have got is kept for `wandb sync`.
    """
    folder = run.path / FOLDER
    options = {
        "name": run.path.name,
        "id": _identity(folder / "id") if run.writes else None,
        "project": config.logger.project,
        "entity": config.logger.entity,
        "resume": "allow",
        "run": run,
        "log_adapter": config.logger.log_adapter,
    }
    if config.logger.mode == "offline":
        # The client reports on itself to its server, offline too, on a machine that may not reach any.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    logger = LosableWandbLogger(**options, mode=config.logger.mode, settings=patience())
    if run.writes and config.logger.mode == "online" and (problem := unreachable(logger)):
        log.warning("W&B does not answer (%s): its metrics are kept in %s; `wandb sync` sends them", problem, folder)
        return LosableWandbLogger(**options, mode="offline")
    return logger


def _identity(file: Path) -> str:
    """The id of the run in W&B, as the file has it; a new one if there is none or it is damaged."""
    if file.is_file():
        known = file.read_text(encoding="utf-8", errors="surrogateescape").strip()
        if known and known.isprintable() and not set(known) & REFUSED_IN_ID:
            return known
        log.warning("%s is damaged: W&B gets the run under a new id, with all metrics, without earlier images", file)
    file.parent.mkdir(parents=True, exist_ok=True)
    # In a sweep of W&B's own its agent has given the run an id, which W&B takes in place of ours.
    given = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    identity = given or secrets.token_hex(4)
    write_atomically(file, identity.encode())
    return identity

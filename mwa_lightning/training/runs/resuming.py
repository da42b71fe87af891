"""Where a run goes on: at its own last checkpoint, at one that was asked for, or nowhere, and then it begins."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mwa_lightning.errors import CheckpointError, ConfigError
from mwa_lightning.system.slurm import restarted
from mwa_lightning.training.runs.checkpointing import LAST, CheckpointFiles, check_keys
from mwa_lightning.training.runs.run_directory import RunDirectory

log = logging.getLogger(__name__)


def check_resume(config: DictConfig, run: RunDirectory) -> bool:
    """Whether the directory holds an earlier start of this run; before anything is read or written.

    Raises ConfigError if it holds something else, if it holds a run and `resume` is `never`, but for a job that SLURM
    has put back, whose run it is; or if that run began elsewhere than `resume` says. Raises CheckpointError if there is
    no such checkpoint, which such a job may need no more.
    """
    started = run.check(config)
    origin = origin_of(config)
    if started and config.resume == "never" and not restarted():
        raise ConfigError(
            f"run_dir={run.path}: holds a run, and resume=never: choose another run_dir, or resume=auto to resume it"
        )
    if origin is not None and not origin.is_file() and not restarted():
        raise CheckpointError(f"resume={origin}: there is no such file; give a checkpoint of a run, auto or never")
    if origin is not None and is_foreign(origin, run.checkpoints):
        home = RunDirectory(origin.parent.parent)
        if home.config.is_file():
            changed = home.other_settings(config)  # the checkpoint itself has none
            if changed:
                raise ConfigError(
                    f"resume={origin}: its run has other settings: {changed}; resume with the same, or begin a run "
                    f"with adapter.checkpoint={home.adapter}, which takes its weights alone"
                )
        else:
            log.warning("resume=%s: no config.yaml of its run is there to compare the settings with", origin)
    if started:
        began = origin_of(run.read_config())
        if origin is not None and is_foreign(origin, run.checkpoints) and origin != began:
            raise ConfigError(
                f"run_dir={run.path}: holds a run that did not begin at resume={origin}: choose another run_dir, or "
                "resume=auto to resume it"
            )
        if origin is None and began is not None and not any(run.checkpoints.glob("*.ckpt")):
            raise ConfigError(
                f"run_dir={run.path}: holds a run that began at {began} and has no checkpoint of its own yet: give "
                f"resume={began} again"
            )
    if origin is not None and not is_foreign(origin, run.checkpoints) and not restarted():
        _note_going_back(origin)
    return started


def beginning_of(config: DictConfig, run: RunDirectory) -> dict[str, Any]:
    """The configuration of the first start of the run that goes on here, or at `resume`; empty for one that begins."""
    origin = origin_of(config)
    homes = [run] if origin is None else [run, RunDirectory(origin.parent.parent)]
    return next((home.read_config() for home in homes if home.config.is_file()), {})


def check_origin(config: DictConfig, trained: Iterable[str]) -> None:
    """Raise CheckpointError unless the file that `resume` names, if any, is whole and of what trains here.

    Whether a job that SLURM has put back still needs it shows later.
    """
    path = origin_of(config)
    if path is not None and not restarted():
        check_keys(CheckpointFiles(path.parent).load_checkpoint(path)["state_dict"], trained, origin=path)


def find_checkpoint(config: DictConfig, files: CheckpointFiles, trained: Iterable[str]) -> Path | None:
    """The checkpoint to go on from, whole and of the tensors that train here; None for a run that begins.

    A file in the run's own directory is taken whatever came after it, by a job that SLURM has put back only until the
    run has saved since; one from elsewhere is where a run begins, which goes on from its own checkpoints as soon as it
    has some.

    Raises CheckpointError if the checkpoints that there are cannot be used.
    """
    path = origin_of(config)
    if path is None or is_foreign(path, files.directory) or (restarted() and _saved_since(path)):
        path = files.latest() or path
    if path is not None:
        check_keys(files.load_checkpoint(path)["state_dict"], trained, origin=path)
    return path


def _note_going_back(path: Path) -> None:
    """Note that a run goes back to one of its own checkpoints, should SLURM start this job again.

    It gets the time of the last one. What is saved since has another, whatever becomes of the clock.
    """
    last = path.with_name(LAST)
    with contextlib.suppress(OSError):  # there is no last one; or it is somebody else's file, and counts as saved since
        os.utime(path, ns=(path.stat().st_atime_ns, _changed(last)))


def _saved_since(path: Path) -> bool:
    """Whether a run has saved since it was noted that it goes back to one of its checkpoints, or that is its last."""
    last = path.with_name(LAST)
    return path == last or not path.is_file() or (last.is_file() and _changed(path) != _changed(last))


def _changed(path: Path) -> int:
    """The time of a file. It is opened, so that a network disk says what others have done."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def origin_of(config: DictConfig | Mapping[str, Any]) -> Path | None:
    """The checkpoint that `resume` names, if it names one."""
    resume = config.get("resume", "auto")
    return None if resume in ("auto", "never") else Path(str(resume))


def is_foreign(path: Path, checkpoints: Path) -> bool:
    """Whether a checkpoint is none of the run's own."""
    return path.parent.resolve() != checkpoints.resolve()

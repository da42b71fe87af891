"""Whose failure an error is, where a signal has come too."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import distributed

from mwa_lightning.errors import Stopped, TrainingError, UserError
from mwa_lightning.system.signals import Signals
from mwa_lightning.training import evaluate
from mwa_lightning.training.callbacks import stopping
from mwa_lightning.training.runs.run_directory import RunDirectory

PEER_GONE = (
    RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]"),
    distributed.DistBackendError("NCCL communicator was aborted on rank 3"),
)
OWN = (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
TWO: Any = SimpleNamespace(count=2)


def told() -> Signals:
    signals = Signals()
    signals.note(signal.SIGTERM)
    return signals


@pytest.mark.parametrize("error", PEER_GONE)
def test_left_alone__by_others_that_had_the_signal_too(error: RuntimeError) -> None:
    assert str(stopping._left_alone(error, told(), TWO)) == "SIGTERM, as the other ranks were"
    with (
        pytest.raises(Stopped, match=r"^stopped by SIGTERM; start the same"),
        evaluate._beginning_anew(told()),
    ):
        raise error


@pytest.mark.parametrize("error", OWN)
def test_left_alone__a_failure_of_its_own_is_none(error: RuntimeError) -> None:
    """It would be requeued, and fail for ever without a word."""
    assert stopping._left_alone(error, told(), TWO) is None
    with pytest.raises(type(error), match=str(error)), evaluate._beginning_anew(told()):
        raise error


RUNNING = "JobState=RUNNING PreemptTime=None"


@pytest.mark.parametrize(
    ("number", "restarts", "steps", "about", "kind"),
    [
        (signal.SIGUSR1, 1, 0, RUNNING, TrainingError),
        (signal.SIGUSR1, 0, 0, RUNNING, Stopped),
        (signal.SIGUSR1, 1, 1, RUNNING, Stopped),
        (signal.SIGTERM, 1, 0, RUNNING, Stopped),
        (signal.SIGUSR1, 1, 0, "JobState=RUNNING PreemptTime=2026-01-01T10:00:00", Stopped),
    ],
)
def test_stopping__a_notice_before_the_first_step_is_not_followed_for_ever(
    number: signal.Signals,
    restarts: int,
    steps: int,
    about: str,
    kind: type[UserError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in {
        "squeue": "echo RUNNING",
        "scontrol": f"echo '{about}'; echo \"$@\" >> {tmp_path}/asked",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    for name, value in {"ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}.items():
        monkeypatch.setenv(name, value)
    config = OmegaConf.create({"training": {"requeue": True, "requeue_signal": "USR1"}})
    stop = stopping.StopAgreement(Signals())
    stop.signals.note(number)
    if steps:
        stop.on_train_batch_end(SimpleNamespace(global_step=steps), None, None, None, 0)  # type: ignore[arg-type]
    alone: Any = SimpleNamespace(count=1, first=True)
    said = r"came before a step was made.* raise --time or lower --signal" if kind is TrainingError else "was requeued"
    with pytest.raises(kind, match=rf"^stopped by {number.name} .*{said}"):  # noqa: SIM117 (what it makes of the error)
        with stopping.stopping(config, stop, alone, RunDirectory(tmp_path / "run")):
            raise Stopped(f"{number.name} before the first step")
    assert ("requeue 7" in (tmp_path / "asked").read_text()) == (kind is Stopped)

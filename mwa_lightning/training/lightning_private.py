"""The private parts of Lightning that a run needs, all of them: pyproject.toml bounds the versions that have them."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.fabric.utilities.distributed import _init_dist_connection as init_dist_connection
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher as SubprocessScriptLauncher

__all__ = ["SubprocessScriptLauncher", "end_epochs_once", "init_dist_connection", "leave_signals", "log_training_step"]


def leave_signals(trainer: pl.Trainer) -> None:
    """Have the trainer leave all signals to `system.signals`.

    Lightning's handlers save in mid-step, each rank at its own, and what it asks about SIGTERM in every step waits for
    the device.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def end_epochs_once(trainer: pl.Trainer) -> None:
    """Have the trainer end an epoch once that had finished when the run stopped.

    With `max_steps` Lightning ends it a second time where it resumes; the number of steps is kept all the same.
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def log_training_step(trainer: pl.Trainer) -> None:
    """Log the metrics of the current step now; Lightning does so after the hooks of the step, and then not again."""
    trainer._logger_connector.update_train_step_metrics()

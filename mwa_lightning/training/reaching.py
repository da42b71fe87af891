"""Reaching the server of Weights & Biases, and what is done where it is not reached."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import WandbLogger

from mwa_lightning.errors import ConfigError

# How long a run waits for W&B at its beginning (WANDB_INIT_TIMEOUT says otherwise), and at its end, in seconds. The
# library would wait at the end until all is sent, for a server that has gone forever.
_AT_THE_END = 120.0


def patience() -> Any:
    """The library's settings that keep an unreachable server from holding up a run."""
    import wandb

    known = getattr(wandb.Settings, "model_fields", {})  # releases differ
    options: dict[str, Any] = {"finish_timeout": _AT_THE_END} if "finish_timeout" in known else {}
    return wandb.Settings(**options)


def unreachable(logger: WandbLogger) -> str:
    """Open the run of an online logger: why its server cannot be reached, empty if it can.

    Raises ConfigError if nobody is logged in.
    """
    import wandb

    try:
        _ = logger.experiment
    except wandb.errors.UsageError as error:
        raise ConfigError(
            "logger=wandb: nobody is logged in to W&B here: run `wandb login`, set WANDB_API_KEY, or take "
            f"logger.mode=offline ({_first_line(error)})"
        ) from error
    except wandb.errors.CommError as error:
        wandb.teardown()
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")

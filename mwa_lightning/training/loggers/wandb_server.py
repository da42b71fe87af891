"""Reaching the server of Weights & Biases, and what is done where it is not reached."""

from __future__ import annotations

import os
import re
from typing import Any

from mwa_lightning.errors import ConfigError
from mwa_lightning.training.loggers.base import LosableLogger

# How long a run waits for W&B at its end, in seconds; WANDB_FINISH_TIMEOUT says otherwise, as WANDB_INIT_TIMEOUT does
# for its beginning. The library would wait until all is sent, for a server that has gone forever.
_AT_THE_END = 120.0


def patience() -> Any:
    """The library's settings that keep an unreachable server from holding up a run."""
    import wandb

    known = getattr(wandb.Settings, "model_fields", {})  # releases differ
    wanted: dict[str, Any] = {"finish_timeout_raises": True}
    if "WANDB_FINISH_TIMEOUT" not in os.environ:
        wanted["finish_timeout"] = _AT_THE_END
    return wandb.Settings(**{key: value for key, value in wanted.items() if key in known})


def unreachable(logger: LosableLogger) -> str:
    """Open the run of an online logger: why its server cannot be reached, empty if it can or the logger is lost.

    Raises ConfigError if nobody is logged in.
    """
    import wandb

    try:
        logger.open()
    except wandb.errors.CommError as error:
        wandb.teardown()
        return first_line(error)
    except Exception as error:
        if isinstance(error, wandb.errors.UsageError) and re.search(r"api.?key|log.?in", str(error), re.IGNORECASE):
            raise ConfigError(
                "logger=wandb: nobody is logged in to W&B here: run `wandb login`, set WANDB_API_KEY, or take "
                f"logger.mode=offline ({first_line(error)})"
            ) from error
        logger.lose(error)
    return ""


def first_line(error: Exception) -> str:
    """What an error of the library says first, of the lines that it often has."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")

"""A try of everything that a run does, with a few samples: `mwa-train +trainer.fast_dev_run=true`.

As users of Lightning know it: so many batches of training, validation and evaluation; nothing is kept. Metrics of so
few samples would pass for others, so there is no closing table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig, open_dict

from mwa_lightning.errors import ConfigError
from mwa_lightning.system.slurm import step

KEY = "fast_dev_run"


def batches(config: DictConfig) -> int:
    """How many batches of each kind are tried; 0 for a run that is none. Raises ConfigError for another value."""
    value = config.trainer.get(KEY)
    if value is not None and (not isinstance(value, int) or value < 0):
        raise ConfigError(f"trainer.{KEY}={value}: want true, false or a number of batches")
    return int(value or 0)


def images_evaluated(config: DictConfig) -> int | None:
    """How many images, or statements, are evaluated; None for all."""
    count = batches(config)
    return max(2, count * config.data.eval_batch_size) if count else None


@contextmanager
def of_a_run_or_a_try(config: DictConfig) -> Iterator[DictConfig]:
    """The configuration of a run; of a try, one that leaves its files in a folder that is removed at the end.

    It is the first process's, which the others are told.

    Raises ConfigError for a try on several machines, which would not all see that folder.
    """
    count = batches(config)
    if not count or _of_further_process():
        yield config
        return
    if config.trainer.num_nodes > 1:
        raise ConfigError(f"trainer.{KEY}: tries a run on one machine; set trainer.num_nodes=1")
    with TemporaryDirectory(prefix="mwa_lightning_") as folder:
        few = config.copy()
        with open_dict(few):
            few.run_dir, few.resume, few.logger = str(Path(folder) / "run"), "auto", {"name": "csv"}
            few.trainer = {**few.trainer, "max_epochs": 1, "max_steps": count, "check_val_every_n_epoch": 1}
        yield few


def _of_further_process() -> bool:
    """Whether this is not the first process of the run, whoever has started it."""
    task = step()
    return bool(int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) if task is None else task.rank)

"""Which arguments of Lightning's Trainer a configuration may add, and why some of them cannot be had."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from mwa_lightning.errors import ConfigError
from mwa_lightning.training.assembly.smoke_test import KEY

# Given by `make_trainer`.
SET_HERE = frozenset(
    {
        "callbacks",
        "default_root_dir",
        "enable_checkpointing",
        "enable_model_summary",
        "enable_progress_bar",
        "logger",
        "num_sanity_val_steps",
        "plugins",
        "use_distributed_sampler",
    }
)
# Keys of `trainer` that are ours.
OWN = frozenset({"threads"})
# By most of these, metrics would have the name of something that they are not of: the values that do nothing, and why
# others are refused.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "barebones": ((False, None), "mwa-train would measure and save nothing; leave it out"),
    "fast_dev_run": (
        (False, None, 0),
        "metrics would be of a part of the split; mwa-train takes it, one run at a time",
    ),
    "limit_predict_batches": ((None, 1.0), "mwa_lightning does not predict by the Trainer; leave it out"),
    "limit_test_batches": ((None, 1.0), "metrics would be of a part of the split; give a smaller data set to try"),
    "limit_val_batches": (
        (None, 1.0),
        "the best epoch would be chosen by a part of the split; trainer.check_val_every_n_epoch=N validates less often",
    ),
    "model_registry": ((None,), "it uploads Lightning's own checkpoints, of which a run leaves none; leave it out"),
    "overfit_batches": (
        (0, 0.0, None),
        "training batches would stand for the val split; +trainer.limit_train_batches=N trains on a part",
    ),
    "reload_dataloaders_every_n_epochs": ((0, None), "a loader that is made anew begins its order again; leave it out"),
    "val_check_interval": (
        (None, 1.0),
        "metrics of the middle of an epoch would be given for the weights at its end; take "
        "trainer.check_val_every_n_epoch=N, and more epochs of fewer batches by +trainer.limit_train_batches=N",
    ),
}


def check_trainer_keys(config: DictConfig, *, trains: bool = False) -> None:
    """Raise ConfigError if a key of `trainer` is none of Lightning's Trainer, set here, or cannot be had.

    What `trains` may be a try (see `smoke_test`).
    """
    keys = inspect.signature(pl.Trainer).parameters.keys() - SET_HERE
    for key, value in config.trainer.items():
        if key in OWN:
            continue
        if key in SET_HERE:
            raise ConfigError(f"trainer.{key}: is set by mwa_lightning itself; leave it out")
        if key not in keys:
            nearest = difflib.get_close_matches(str(key), sorted(keys), n=1)
            hint = f"Did you mean trainer.{nearest[0]}?" if nearest else "Its documentation lists them; leave it out."
            raise ConfigError(f"trainer.{key}: is no key of lightning's Trainer. {hint}")
        if trains and key == KEY:
            continue
        harmless, why = REFUSED.get(str(key), ((value,), ""))
        if not any(value == each and type(value) is type(each) for each in harmless):
            raise ConfigError(f"trainer.{key}={value}: {why}")
    if config.trainer.get("limit_train_batches") == 0:
        raise ConfigError("trainer.limit_train_batches=0: nothing would train; leave it out")


@contextmanager
def understood(*further: type[Exception]) -> Iterator[None]:
    """Turns what the Trainer says of its arguments, in its own exceptions and `further` ones, into a ConfigError."""
    kinds: tuple[type[Exception], ...] = (MisconfigurationException, *further)
    try:
        yield
    except kinds as error:
        raise ConfigError(f"trainer: Lightning does not take these keys: {' '.join(str(error).split())}") from error

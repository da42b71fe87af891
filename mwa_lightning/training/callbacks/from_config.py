"""Callbacks of any class: each key of `callbacks` that holds a node with a `_target_`."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig

from mwa_lightning.errors import ConfigError
from mwa_lightning.training.instantiating import checked, instantiate


def check_callbacks(node: DictConfig) -> None:
    """Raise ConfigError if a class cannot be had, is no Callback, or would save checkpoints beside ours."""
    for name, each in _nodes(node):
        kind, _ = checked(each, group=name, base=pl.Callback)
        if issubclass(kind, Checkpoint):
            raise ConfigError(
                f"{name}._target_={each._target_}: a run saves its checkpoints itself; "
                "training.checkpoint_every_n_steps=N saves more often, training.monitor=METRIC chooses the best"
            )


def make_callbacks(node: DictConfig) -> list[pl.Callback]:
    """Make them in the order of the configuration; Lightning saves their state in our checkpoints."""
    return [instantiate(each, group=name, base=pl.Callback) for name, each in _nodes(node)]


def _nodes(node: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    for name, each in node.items():
        if isinstance(each, DictConfig):
            yield f"callbacks.{name!s}", each

"""Configurations of a tiny random backbone and a tiny data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from mwa_lightning.cli.config.composing import apply, compose_groups, read_request
from mwa_lightning.cli.config.schema import check_values
from mwa_lightning.training.watching.watch import LearningWatch

MakeConfig = Callable[..., DictConfig]


@pytest.fixture
def make_config(tiny_run: list[str], tmp_path: Path) -> MakeConfig:
    """Composes as the command line does what `tiny_run` holds."""

    def make(*arguments: str, command: str = "train", run: str = "run") -> DictConfig:
        base = [*tiny_run, f"run_dir={tmp_path / run}"]
        if not any(argument.startswith("adapter=") and argument != "adapter=mwa" for argument in arguments):
            base += ["adapter.mid_dim=4", "adapter.enhancer_dim=4"]
        request = read_request([*base, *arguments], config_name=command)
        config = compose_groups(command, request.choices)
        apply(config, request)
        check_values(config)
        return config

    return make


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> list[LearningWatch]:
    """Those of the runs of a test."""
    found: list[LearningWatch] = []
    begin = LearningWatch.__init__

    def noted(self: LearningWatch, **options: Any) -> None:
        begin(self, **options)
        found.append(self)

    monkeypatch.setattr(LearningWatch, "__init__", noted)
    return found


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are faster on one thread, by far where other processes keep the cores busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

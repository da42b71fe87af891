"""A small data set, and training on it by one process and by two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from mwa_lightning.cli import train
from mwa_lightning.cli.config.consistency import LEAST_FSDP
from mwa_lightning.data.scenes.writing import write_scenes
from mwa_lightning.training.callbacks.run_keeper import RunKeeper

COMMON = (
    "optim.warmup_epochs=0",
    "optim.eps=1e-3",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=1",
    "trainer.precision=32",
    "callbacks.progress_bar=false",
)
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=8")
ONE = ("trainer=cpu", "data.batch_size=16")

needs_fsdp = pytest.mark.skipif(
    Version(version("torch")) < Version(LEAST_FSDP), reason=f"fsdp needs torch {LEAST_FSDP} or newer"
)
Train = Callable[..., int]


class Killed(BaseException):
    """Stands for SIGKILL."""


def stop_after_first_save(start: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a run that ends behind its first checkpoint."""
    save = RunKeeper._save

    def dying(self: RunKeeper, trainer: Any, **position: int) -> None:
        save(self, trainer, **position)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "_save", dying)
        with pytest.raises(Killed):
            start()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 pictures to train on, so an epoch has six global batches of 16, and odd numbers to evaluate on."""
    root = tmp_path_factory.mktemp("distributed") / "scenes"
    write_scenes(root, domain="target", seed=3, train=21, val=5, test=9)
    return root


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Each process has one thread; the further ones learn it from the environment."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture
def train_two(scenes: Path) -> Train:
    """`mwa-train` for four steps with this process as the first of two; returns its exit code."""
    return lambda *arguments, root=scenes: train.main([*TWO, *COMMON, f"data.root={root}", *arguments])


@pytest.fixture
def train_one(scenes: Path) -> Train:
    """The same global batches in this process alone.

    An element whose gradient is nothing but rounding error is moved by its sign in Adam with the usual eps of 1e-8;
    the eps of these runs lifts the comparison above that.
    """
    return lambda *arguments, root=scenes: train.main([*ONE, *COMMON, f"data.root={root}", *arguments])

"""A learning-rate range test in place of a training: `mwa-train training.find_lr=true`.

The rate rises from step to step, and where the loss falls fastest is a rate to train with (L. N. Smith, Cyclical
Learning Rates for Training Neural Networks, 2017, section 3.3). Lightning's `Tuner.lr_find` does not fit: it takes our
callbacks out (seeds, signals), gives the layers of `optim.layer_decay` one rate, lets each rank stop by its own loss,
and goes back by a checkpoint, of which a run that has not begun has none.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig
from torch import Tensor, nn

from mwa_lightning.data.base import SplitDataModule
from mwa_lightning.errors import Interrupted, Stopped, UserError
from mwa_lightning.report.rate_curve import rate_curve
from mwa_lightning.tasks.base import AdaptationTask
from mwa_lightning.training.assembly.setup import make_trainer
from mwa_lightning.training.assembly.trainer_keys import understood
from mwa_lightning.training.callbacks.run_keeper import PositionSeeds, Progress
from mwa_lightning.training.callbacks.stopping import StopAgreement
from mwa_lightning.training.distributed.processes import Processes, with_settings
from mwa_lightning.training.optim import optimizer_of
from mwa_lightning.training.runs.run_directory import RunDirectory, write_atomically
from mwa_lightning.training.starting import FittedStart

log = logging.getLogger(__name__)

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
DIVERGED = 4.0  # times the lowest smoothed loss: no higher rate is tried
_MEMORY = 0.9  # of the running mean that tells divergence
_CLEAR = 3.0  # times what single losses lie beside their mean: a fall that is none of chance
_WIDTH = 3.0  # steps: standard deviation of the kernel that smooths for the suggestion


@dataclass(frozen=True)
class Suggestion:
    """What the losses say: the rate of the steepest fall, and that of the lowest loss. Both None where none falls."""

    smoothed: list[float]
    rate: float | None = None
    lowest: float | None = None


class RangeTest(pl.Callback):
    """Sets the rate of each step, takes its loss (the mean over ranks and micro-batches), and ends at divergence."""

    def __init__(self, stop: StopAgreement, *, steps: int = STEPS) -> None:
        self.stop = stop
        self.steps = steps
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._sum: Tensor | None = None
        self._mean = 0.0
        self._best = math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There is nothing to save: Ctrl-C ends the test at once."""
        self.stop.signals.at_interrupt = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Set the rate, with the factors of the layers."""
        share = len(self.losses) / max(1, self.steps - 1)
        rate = LOWEST * (HIGHEST / LOWEST) ** share
        self.rates = [*self.rates[: len(self.losses)], rate]
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss if this batch ended a step. Raises Stopped where a signal came."""
        if self.stop.agreed:
            raise Stopped(f"{self.stop.name} during the learning-rate range test")
        loss = outputs["loss"].detach()
        self._sum = loss if self._sum is None else self._sum + loss  # each is divided by their number
        if len(self.rates) == len(self.losses):
            return  # there was no step yet
        value = float(trainer.strategy.reduce(self._sum, reduce_op="mean"))
        self._sum = None
        self.losses.append(value)
        count = len(self.losses)
        self._mean = _MEMORY * self._mean + (1 - _MEMORY) * value
        mean = self._mean / (1 - _MEMORY**count)
        self._best = min(self._best, mean)
        if count == self.steps or not math.isfinite(value) or mean > DIVERGED * self._best:
            trainer.should_stop = True


def find_lr(
    config: DictConfig,
    task: AdaptationTask[Any, Any],
    data: SplitDataModule[Any],
    run: RunDirectory,
    processes: Processes,
    stop: StopAgreement,
) -> None:
    """Try all rates, leave `lr_find.png` and `lr_find.csv`, say which to train with; the task is then as it was."""
    test = RangeTest(stop, steps=STEPS)
    begin = time.perf_counter()
    log.info("learning-rate range test: %d steps, optim.lr from %.0e to %.0e", STEPS, LOWEST, HIGHEST)
    codes = (UserError.exit_code, Stopped.exit_code, Interrupted.exit_code)
    with run.removed_at(*codes, unless=run.rates.name), as_before(task), understood():
        run.create(checkpoints=False)
        settings = {key: value for key, value in config.trainer.items() if key not in ("min_steps", "min_epochs")}
        # Each epoch has a step at least.
        settings |= {"max_epochs": STEPS, "max_steps": STEPS, "limit_val_batches": 0}
        trainer = make_trainer(
            with_settings(config, {"trainer": settings}),
            run,
            processes,
            callbacks=[FittedStart(seed=config.seed), PositionSeeds(seed=config.seed), stop, test, Progress()],
        )
        task.configure = lambda task: optimizer_of(config.optim, task.model, lr=LOWEST)
        trainer.fit(task, datamodule=data)
    found = suggest(test.rates, test.losses)
    if run.writes:
        _write(run, test, found)
    log.info("%d steps in %.0f s: %s, %s", len(test.losses), time.perf_counter() - begin, run.rates, run.rates_table)
    if found.rate is None:
        log.info("at no rate does the loss fall by more than it varies: look at the picture, or train longer")
    else:
        log.info("the loss is lowest at %.1e and falls fastest at optim.lr=%.1e", found.lowest, found.rate)


def suggest(rates: Sequence[float], losses: Sequence[float]) -> Suggestion:
    """The rate at which the smoothed loss falls fastest, before its lowest point, by the logarithm of the rate.

    There is none where it falls by no more than chance would have it.
    """
    count = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    steps = np.arange(count)
    kernel = np.exp(-0.5 * ((steps[:, None] - steps) / _WIDTH) ** 2)
    values = np.asarray(losses[:count])
    smoothed = kernel @ values / kernel.sum(axis=1)
    found = Suggestion([*smoothed.tolist(), *[math.nan] * (len(losses) - count)])
    if count < 2:
        return found
    lowest = int(smoothed.argmin())
    noise = 1.48 * float(np.median(np.abs(values - smoothed)))  # a standard deviation, whatever divergence does
    if smoothed[: lowest + 1].max() - smoothed[lowest] <= _CLEAR * noise:
        return found
    slope = np.gradient(smoothed, np.log(rates[:count]))
    steepest = int(slope[: lowest + 1].argmin())
    return Suggestion(found.smoothed, rate=rates[steepest], lowest=rates[lowest])


@contextmanager
def as_before(task: nn.Module) -> Iterator[None]:
    """Give what trains, buffers, gradients and random generators back as they were."""
    kept = {name: tensor.detach().clone() for name, tensor in _changing(task)}
    with isolate_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in _changing(task):
                    tensor.copy_(kept[name])
                    tensor.grad = None


def _changing(task: nn.Module) -> Iterator[tuple[str, Tensor]]:
    trained = ((name, tensor) for name, tensor in task.named_parameters() if tensor.requires_grad)
    return chain(trained, task.named_buffers())


def _write(run: RunDirectory, test: RangeTest, found: Suggestion) -> None:
    rows = zip(test.rates, test.losses, found.smoothed, strict=True)
    lines = ["step,lr,loss,smoothed", *(f"{step},{','.join(map(repr, row))}" for step, row in enumerate(rows))]
    write_atomically(run.rates_table, ("\n".join(lines) + "\n").encode())
    write_atomically(run.rates, rate_curve(test.rates, test.losses, found.smoothed, suggestion=found.rate))

"""Watches whether a run learns, and names one that has collapsed, is dead, diverges or learns nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from mwa_lightning.errors import NotLearning
from mwa_lightning.tasks.base import AdaptationTask
from mwa_lightning.tasks.losses.signs import Signs
from mwa_lightning.training.watching.step_signs import Step, StepSigns
from mwa_lightning.training.watching.verdicts import Finding, described, figures, is_over, judge, kept

log = logging.getLogger(__name__)

# Steps between judgements within an epoch.
EVERY = 50


class LearningWatch(pl.Callback):
    """Notes each step's signs on its device, and judges them every 50 steps and at the end of an epoch.

    Only then, and where the run is saved, does the host wait for the device, and do processes tell each other their
    parts. Nothing that trains is touched. What is found is said once; so is it when the run has come out of it.

    Args:
        action: `warn`, or `stop`: raise NotLearning, in all processes at the same step.
        advise: What to change, for a finding and the highest learning rate so far.
    """

    def __init__(self, *, action: Literal["stop", "warn"], advise: Callable[[Finding, float], str]) -> None:
        self.action = action
        self.advise = advise
        self.finding: Finding | None = None
        self._steps: list[Step] = []
        self._signs = StepSigns()
        self._batches: list[list[Signs]] = []
        self._step = 0
        self._rate, self._peak, self._warm_from = 0.0, 0.0, 0

    @property
    def figures(self) -> dict[str, float]:
        """What `metrics.json` says of it, as of the last judgement."""
        return figures(self._steps, self.finding)

    @property
    def remark(self) -> str | None:
        """What is wrong as of the last judgement, and what to change."""
        return None if self.finding is None else f"{described(self.finding)}; {self.advise(self.finding, self._peak)}"

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the step that this batch belongs to."""
        self._step = trainer.global_step

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        assert isinstance(pl_module, AdaptationTask)
        if pl_module.signs:
            self._batches.append(pl_module.signs)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Close the row of a step, with its gradients, which are not clipped yet."""
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        # The scale of the logits may have a higher one of its own.
        own = [rate for rate, group in zip(rates, optimizer.param_groups, strict=True) if group.get("scale", 1) <= 1]
        rate = max(own or rates)
        self._peak = max(self._peak, rate)
        if rate > self._rate:
            self._warm_from = trainer.global_step
        self._rate = rate
        batches, self._batches = self._batches, []
        if batches:
            model = pl_module.get_submodule("model")
            self._signs.add(trainer.global_step, batches, model, processes=trainer.world_size)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge where it is due, before a validation. Raises NotLearning."""
        if trainer.global_step == self._step:
            return
        ends = batch_idx + 1 == trainer.num_training_batches or trainer.global_step == trainer.max_steps
        if ends or trainer.global_step % EVERY == 0:
            self._settle()
            self._judge()

    def state_dict(self) -> dict[str, Any]:
        """The steps that are needed to judge, and what was found, for checkpoints."""
        self._settle()
        return {
            "steps": [list(step) for step in self._steps],
            "finding": None if self.finding is None else list(self.finding),
            "rate": self._rate,
            "peak": self._peak,
            "warm_from": self._warm_from,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = [Step(*step) for step in state_dict["steps"]]
        self.finding = None if state_dict["finding"] is None else Finding(*state_dict["finding"])
        self._rate, self._peak, self._warm_from = (state_dict[key] for key in ("rate", "peak", "warm_from"))

    def _settle(self) -> None:
        """Take in the steps of all processes, but for those that the guard against non-finite numbers has left out."""
        self._steps = kept([*self._steps, *(step for step in self._signs.take() if step.finite)])

    def _judge(self) -> None:
        """Say what is wrong, or is so no more. Raises NotLearning."""
        before = self.finding
        if before is None:
            self.finding = judge(self._steps, warm_from=self._warm_from)
        elif is_over(before, self._steps):
            log.info("the run learns again at step %d", self._steps[-1].number)
            self.finding = None
        if self.remark is not None and self.action == "stop":
            raise NotLearning(self.remark)
        if self.remark is not None and before is None:
            log.warning("%s", self.remark)

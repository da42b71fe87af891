"""What a training step tells of whether the model learns, from its tensors on the devices to one row of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mwa_lightning.sharded_tensors import own_part
from mwa_lightning.tasks.losses.signs import Mean, Signs
from mwa_lightning.training.distributed.processes import gathered


class Step(NamedTuple):
    """The signs of one optimizer step, of all processes and micro-batches.

    Attributes:
        number: Which step, from 0.
        losses: By part of the loss (see `Signs.of`).
        knowing_nothing: By part of the loss, what it is for one who does not look.
        spreads: By what would look alike if it were 0, the norm of the standard deviation; NaN where it is not known.
        gradients: By part of the model (`adapter`, `heads`, `backbone`), the norm before clipping.
    """

    number: int
    losses: dict[str, float]
    knowing_nothing: dict[str, float]
    spreads: dict[str, float]
    gradients: dict[str, float]

    @property
    def finite(self) -> bool:
        """Whether loss and gradients are finite."""
        return all(map(math.isfinite, (*self.losses.values(), *self.gradients.values())))


class StepSigns:
    """Gathers the signs of steps on their devices, until somebody asks for the numbers."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, list[int], Tensor]] = []
        self._places: list[tuple[str, str]] = []
        self._model_parts: list[str] = []

    def add(self, step: int, batches: Sequence[Sequence[Signs]], model: nn.Module, *, processes: int) -> None:
        """Take in a step of several micro-batches, after the backward pass; nothing waits for the device."""
        self._places = [place for place, _ in _entries(batches[0])]
        means = [mean for signs in batches for _, mean in _entries(signs)]
        self._model_parts, squares = squared_norms(model, processes=processes)
        values = torch.stack([mean.value.float() for mean in means])
        self._rows.append((step, [mean.weight for mean in means], torch.cat([values, squares])))

    def take(self) -> list[Step]:
        """The steps since it was asked last, of all processes, which ask together. Waits for the device."""
        rows, self._rows = self._rows, []
        if not rows:
            return []
        numbers = iter(torch.cat([row for _, _, row in rows]).tolist())
        own = [(step, weights, [next(numbers) for _ in row]) for step, weights, row in rows]
        return [self._of_all(every) for every in zip(*gathered(own), strict=True)]

    def _of_all(self, every: Sequence[tuple[int, list[int], list[float]]]) -> Step:
        """One step from what each process has of it."""
        step = Step(every[0][0], {}, {}, {}, {})
        kinds = {"loss": step.losses, "knowing nothing": step.knowing_nothing, "variance": step.spreads}
        count = len(self._places)
        for place, (kind, name) in enumerate(self._places):
            pairs = [
                pair
                for _, weights, values in every
                for pair in zip(weights[place::count], values[place : len(weights) : count], strict=True)
            ]
            total = sum(weight for weight, _ in pairs)
            mean = sum(weight * value for weight, value in pairs if weight) / total if total else math.nan
            kinds[kind][name] = math.sqrt(mean) if kind == "variance" else mean
        for place, name in enumerate(self._model_parts):
            step.gradients[name] = math.sqrt(sum(values[len(weights) + place] for _, weights, values in every))
        return step


def squared_norms(model: nn.Module, *, processes: int) -> tuple[list[str], Tensor]:
    """The parts of a model that have gradients (p), and this process's share of their squared norms (p,).

    Of a gradient that all processes have alike, the share is one of so many.
    """
    gradients: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients.setdefault(name.partition(".")[0], []).append(parameter.grad)
    every = [gradient for part in gradients.values() for gradient in part]
    norms = torch.stack(torch._foreach_norm([own_part(gradient) for gradient in every])).square()
    if processes > 1:
        shares = [1 / processes if own_part(gradient) is gradient else 1.0 for gradient in every]
        norms = norms * torch.tensor(shares).to(norms.device, non_blocking=True)
    return list(gradients), torch.stack(
        [part.sum() for part in norms.split([len(part) for part in gradients.values()])]
    )


def _entries(signs: Sequence[Signs]) -> Iterator[tuple[tuple[str, str], Mean]]:
    """The numbers of a micro-batch, each with what it is."""
    for sign in signs:
        yield ("loss", sign.of), Mean(sign.loss, 1)
        yield ("knowing nothing", sign.of), sign.knowing_nothing
        for name, mean in sign.variances.items():
            yield ("variance", name), mean

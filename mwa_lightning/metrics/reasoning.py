"""Accuracy and consistency of labelled statements, in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from mwa_lightning.errors import DataError, NotFinite
from mwa_lightning.metrics.file_order import broken_rows, first_of_each


class Classified(NamedTuple):
    """A split's logits (n, classes), labels (n,) and places (n,), in file order."""

    logits: Tensor
    labels: Tensor
    sample_index: Tensor


class StatementAccuracy(Metric):
    """The share of statements that are classified rightly, and the consistency of NLVR2.

    A statement is right where the logit of its label exceeds every other one, so ties count against us. A
    sentence is consistent if all its instances are right; the consistency is the share of the sentences that
    are (the rule of the official `metrics.py`). It is reported where the groups are known, and for each named
    subset the same figures follow under its name, such as `balanced/accuracy`.

    The result does not depend on the order of updates, and samples that come twice (as padding between
    processes) count once. In a distributed run every process has to update, if only with (0, classes) logits.
    With `keep`, `compute` leaves what all processes gave in `classified`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    logits: list[Tensor]
    labels: list[Tensor]
    index: list[Tensor]

    def __init__(self, *, keep: bool = False) -> None:
        super().__init__()
        self.keep = keep
        self.classified: Classified | None = None
        self._identifiers: Sequence[str] | None = None
        self._groups: Tensor | None = None
        self._subsets: dict[str, Tensor] = {}
        for state in ("logits", "labels", "index"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def describe(
        self,
        *,
        identifiers: Sequence[str],
        groups: np.ndarray | None = None,
        subsets: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Say what the samples are, in file order.

        Args:
            identifiers: Name of each, for messages.
            groups: Number of the sentence that each is an instance of (n,); None where that is not known.
            subsets: For each named subset, which samples belong to it, bool (n,).
        """
        self._identifiers = identifiers
        self._groups = None if groups is None else torch.from_numpy(groups)
        self._subsets = {name: torch.from_numpy(members) for name, members in (subsets or {}).items()}

    def update(self, logits: Tensor, labels: Tensor, index: Tensor) -> None:
        """Take samples: logits (b, classes), labels (b,) and their numbers in file order (b,)."""
        self.logits.append(logits.detach().float())
        self.labels.append(labels)
        self.index.append(index)

    def compute(self) -> dict[str, Tensor]:
        """The figures in percent, as float64.

        Raises NotFinite if a logit is not finite, DataError if there are no samples.
        """
        classified = self._collect()
        if self.keep:
            self.classified = classified
        right = strictly_right(classified.logits, classified.labels).cpu()
        index = classified.sample_index.cpu()
        groups = None if self._groups is None else self._groups[index]
        figures = _figures(right, groups)
        for name, members in self._subsets.items():
            inside = members[index]
            if bool(inside.any()):
                part = _figures(right[inside], None if groups is None else groups[inside])
                figures |= {f"{name}/{figure}": value for figure, value in part.items()}
        device = classified.logits.device
        return {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in figures.items()}

    def _collect(self) -> Classified:
        # A list of batches, or after the gathering one tensor.
        if not len(self.index) or not len(dim_zero_cat(self.index)):
            raise DataError("reasoning: no statements were classified; is the split empty?")
        logits, labels, index = (dim_zero_cat(state) for state in (self.logits, self.labels, self.index))
        broken = index[broken_rows(logits)]
        if len(broken):
            first = int(broken.min())
            name = f"sample {first} (in file order, from 0)"
            if self._identifiers is not None:
                name = f"{self._identifiers[first]}, {name}"
            raise NotFinite(
                f"reasoning: the logits of {len(broken)} of {len(index)} statements are not finite, the first is "
                f"{name}; the weights diverged or the file is damaged: lower optim.lr, or give other weights"
            )
        return Classified(first_of_each(index, logits), first_of_each(index, labels), first_of_each(index, index))


def strictly_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the logit of the label (n,) exceeds all others of its row (n, classes): bool (n,)."""
    own = logits.gather(1, labels.unsqueeze(1))
    return (logits >= own).sum(dim=1) == 1


def _figures(right: Tensor, groups: Tensor | None) -> dict[str, float]:
    figures = {"accuracy": 100 * int(right.sum()) / len(right)}
    if groups is not None:
        sentences, failed = len(groups.unique()), len(groups[~right].unique())
        figures["consistency"] = 100 * (sentences - failed) / sentences
    return figures

"""Signs of whether a model learns: what guessing would cost, and how far it tells the samples of a batch apart.

All of it comes from what the step computes anyway, on the device and without a gradient: nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from mwa_lightning.tasks.losses.functions import several_processes

_LEAST = torch.finfo(torch.float32).tiny  # of a share whose logarithm is taken


class Mean(NamedTuple):
    """A mean (), fp32, and its weight among those of other batches and processes; of weight 0 it says nothing."""

    value: Tensor
    weight: int


class Signs(NamedTuple):
    """Those of one part of the loss on one batch, as this process's part of them.

    Attributes:
        of: What the part is: `contrast`, `matching` or `classes`.
        loss: The loss (), whose mean over the processes is that of the global batch.
        knowing_nothing: The least loss of an answer that is the same for all samples.
        variances: By what would look alike if it were 0 (`images`, `texts`, `statements`): the squared norm of the
            standard deviation over the batch.
    """

    of: str
    loss: Tensor
    knowing_nothing: Mean
    variances: Mapping[str, Mean]


@torch.no_grad()
def variance(rows: Tensor) -> Mean:
    """The squared norm of the standard deviation of rows (b, d); embeddings that point anywhere have about 1."""
    if len(rows) < 2:
        return Mean(rows.new_zeros((), dtype=torch.float32), 0)
    return Mean(rows.detach().float().var(dim=0).sum(), len(rows) - 1)


@torch.no_grad()
def variance_of_logits(logits: Tensor) -> Mean:
    """`variance` of the log-odds of classes: logits (b, classes) less their mean, to which the softmax is blind."""
    return variance(logits.detach().float() - logits.detach().float().mean(dim=1, keepdim=True))


@torch.no_grad()
def knowing_nothing_of_contrast(
    image_ids: Tensor,
    *,
    mask_same_image: bool,
    shares: Sequence[int] | None = None,
    further: int = 0,
    sigmoid: bool = False,
) -> Mean:
    """`Signs.knowing_nothing` of the contrastive losses of pairs (b,), see there for the arguments.

    Of the softmax it is the logarithm of the number of candidates, those of a queue `further` ones; of the sigmoid the
    loss of its best bias alone. Pairs of the same image that are with other processes are taken for candidates: to ask
    would take a message a step.
    """
    own, total = len(image_ids), sum(shares) if shares is not None else len(image_ids) * _processes()
    candidates = torch.full((max(own, 1),), float(total + further), device=image_ids.device)
    if mask_same_image and own:
        candidates = total + further + 1 - (image_ids.unsqueeze(1) == image_ids).sum(dim=1).float()
    if not sigmoid:
        return Mean(candidates.log().mean(), own)
    # So much of the pairs of an image and a text are right, which is all that one knows who does not look.
    pairs = candidates.mean().clamp(min=1.0)
    return Mean(pairs.log() + torch.special.xlogy(pairs - 1, pairs / (pairs - 1).clamp(min=_LEAST)), own)


@torch.no_grad()
def knowing_nothing_of_matching(image_ids: Tensor, candidates: Tensor) -> Mean:
    """`Signs.knowing_nothing` of matching: of each pair that has wrong partners, two of three are wrong.

    Args:
        image_ids: Of this process's pairs (b,).
        candidates: Those of the pairs that wrong partners come from (c,).
    """
    own = len(image_ids)
    wrong = 2 * (image_ids.unsqueeze(1) != candidates).any(dim=1).sum()
    right = own / (own + wrong).clamp(min=1)
    return Mean(-torch.special.xlogy(right, right) - torch.special.xlogy(1 - right, 1 - right), own)


@torch.no_grad()
def knowing_nothing_of_classes(labels: Tensor, shares: Tensor, *, label_smoothing: float) -> Mean:
    """`Signs.knowing_nothing` of a classification of labels (b,): always the shares (classes,) that they have."""
    if not len(labels):
        return Mean(shares.new_zeros(()), 0)
    cost = -((1 - label_smoothing) * shares + label_smoothing / len(shares)).clamp(min=_LEAST).log()
    return Mean((1 - label_smoothing) * cost[labels].mean() + label_smoothing * cost.mean(), len(labels))


def _processes() -> int:
    return distributed.get_world_size() if several_processes() else 1

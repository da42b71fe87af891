"""A start that fits the data: the scale and the bias of the logits that give the least loss on embeddings as they are.

A pretrained scale is that of embeddings that already know the data. On other data it makes wrong answers confident: the
loss begins far above that of knowing nothing, and the steepest way down is to make all embeddings equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from mwa_lightning.sharded_tensors import laid_out_like, own_part
from mwa_lightning.tasks.heads import EmbeddingHeads, FusionRetrievalHeads
from mwa_lightning.tasks.losses.functions import several_processes

SMALLEST_SCALE = 1.0


class Similarities(NamedTuple):
    """Cosines (b, b) of the images with the texts of a global batch, row i and column i being a pair.

    `left_out` (b, b), bool, marks pairs that the loss leaves out.
    """

    cosines: Tensor
    left_out: Tensor


class Logits(NamedTuple):
    """How cosines become logits: times `scale`, plus `bias`; and the mean loss of the batches that these give."""

    scale: float
    bias: float
    loss: float


def similarities(images: Tensor, texts: Tensor, image_ids: Tensor, *, mask_same_image: bool) -> Similarities:
    """Those of embeddings (b, d) of unit length, whose images are `image_ids` (b,); in fp64, on the CPU."""
    images, texts, image_ids = (part.detach().cpu() for part in (images, texts, image_ids))
    same = image_ids.unsqueeze(1) == image_ids.unsqueeze(0)
    left_out = same.fill_diagonal_(False) if mask_same_image else torch.zeros_like(same)
    return Similarities(images.double() @ texts.double().T, left_out)


PairLoss = Callable[[Similarities, Tensor, Tensor], Tensor]


def softmax_loss(batch: Similarities, scale: Tensor, bias: Tensor) -> Tensor:
    """`contrastive_loss` of a whole batch; a bias would change nothing."""
    logits = (scale * batch.cosines).masked_fill(batch.left_out, -torch.inf)
    own = torch.arange(len(logits))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def pairwise_loss(batch: Similarities, scale: Tensor, bias: Tensor) -> Tensor:
    """`sigmoid_loss` of a whole batch."""
    logits = scale * batch.cosines + bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -functional.logsigmoid(signs * logits).masked_fill(batch.left_out, 0.0).sum() / len(logits)


def fitted(batches: Sequence[Similarities], loss: PairLoss, *, smallest: float, largest: float) -> Logits:
    """The scale, of those from `smallest` to `largest`, and the bias with the least mean loss of the batches."""
    low, high = math.log(smallest), math.log(largest)

    def scale_at(place: Tensor) -> Tensor:
        return (low + (high - low) * place.sigmoid()).exp()

    def mean(point: Tensor) -> Tensor:
        return mean_loss(batches, loss, scale_at(point[0]), point[1])

    # The bias of the sigmoid loss begins where all pairs are as likely as the right ones are many.
    (place, bias), value = _least(mean, [0.0, -math.log(max(1, len(batches[0].cosines) - 1))])
    return Logits(float(scale_at(torch.tensor(place, dtype=torch.float64))), bias, value)


def fitted_matching(margins: Tensor, matches: Tensor) -> Logits:
    """The scale from 0 to 1, and the bias, with the least cross-entropy of the margins (b,) by which a pair matches.

    `matches` (b,), int64, says whether it does.
    """
    margins, labels = margins.detach().double().cpu(), matches.detach().double().cpu()

    def loss(point: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(point[0].sigmoid() * margins + point[1], labels)

    (place, bias), value = _least(loss, [0.0, 0.0])
    return Logits(float(torch.tensor(place, dtype=torch.float64).sigmoid()), bias, value)


@torch.no_grad()
def start_logits(
    heads: EmbeddingHeads,
    batches: Sequence[Similarities],
    *,
    loss: str,
    wanted: float | str,
    largest: float,
) -> str:
    """Give the heads the scale (and, for the sigmoid loss, the bias) that fits best, or is wanted; says so in a line.

    `loss` is `softmax` or `sigmoid`, `wanted` is `fitted` or a number; a fitted scale is at most `largest`. All
    processes have the same batches; they take the numbers of the first, should machines round differently.
    """
    formula: PairLoss = softmax_loss if loss == "softmax" else pairwise_loss
    scale, bias = heads.logit_scale.exp().item(), 0.0 if heads.logit_bias is None else heads.logit_bias.item()
    before = float(mean_loss(batches, formula, torch.tensor(scale), torch.tensor(bias)))
    nothing = fitted(batches, formula, smallest=1e-9, largest=1e-9).loss
    low, high = (SMALLEST_SCALE, largest) if wanted == "fitted" else (float(wanted), float(wanted))
    found = fitted(batches, formula, smallest=low, largest=high)
    _set(heads.logit_scale, math.log(found.scale))
    if loss == "sigmoid":
        assert heads.logit_bias is not None
        _set(heads.logit_bias, found.bias)
    return (
        f"task.logit_scale={wanted}: the similarities are multiplied by {found.scale:.3g} in place of {scale:.3g}; the "
        f"loss begins at {found.loss:.2f} in place of {before:.2f} (knowing nothing: {nothing:.2f})"
    )


@torch.no_grad()
def start_matching(heads: FusionRetrievalHeads, margins: Tensor, matches: Tensor) -> str:
    """Scale and shift the matching head to fit margins (b,) and matches (b,) of pairs; says so in a line."""
    layer = heads.matching
    found = fitted_matching(margins, matches)
    share = float(matches.double().mean())
    nothing = -sum(part * math.log(part) for part in (share, 1 - share) if part)
    own_part(layer.weight).mul_(found.scale)
    shift = torch.tensor([-found.bias / 2, found.bias / 2])
    own_part(layer.bias).mul_(found.scale).add_(own_part(laid_out_like(shift, layer.bias)))
    return f"image-text matching begins at a loss of {found.loss:.2f} (knowing nothing: {nothing:.2f})"


def mean_loss(batches: Sequence[Similarities], loss: PairLoss, scale: Tensor, bias: Tensor) -> Tensor:
    """The mean loss of the batches, with this scale () and bias ()."""
    return torch.stack([loss(batch, scale, bias) for batch in batches]).mean()


def _set(parameter: nn.Parameter, value: float) -> None:
    parameter.fill_(value)
    if several_processes():
        distributed.broadcast(parameter.data, src=0)


def _least(loss: Callable[[Tensor], Tensor], start: Sequence[float]) -> tuple[list[float], float]:
    """Where a smooth loss of a few numbers with one valley is least, by L-BFGS in fp64, and how much it is there."""
    point = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([point], max_iter=100, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss(point)
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(closure)
        return point.tolist(), loss(point).item()

"""Losses of the tasks, in fp32 and over the global batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    *,
    logit_scale: Tensor,
    image_ids: Tensor,
    mask_same_image: bool,
    shares: Sequence[int] | None = None,
) -> Tensor:
    """The symmetric contrastive loss (InfoNCE) of the global batch, as this process's part of it.

    With S = exp(logit_scale) * images @ texts^T of the global batch of B pairs, the loss is the mean over i
    of -(log softmax(S[i, :])[i] + log softmax(S[:, i])[i]) / 2. A process computes the rows of its own pairs
    against all others, times the number of processes over B: so the mean over the processes is the loss, and
    gradients averaged over the processes (as DDP and FSDP do) are exactly those of one process with the
    global batch, also where local batches differ in size or are empty. The scale is taken as it is:
    `clamp_logit_scale` bounds it after the step.

    Args:
        images: Embeddings (b, d) of unit length.
        texts: Embeddings (b, d) of unit length; row i belongs to row i of `images`.
        logit_scale: The logarithm of the scale, ().
        image_ids: (b,), int64, unique over the data set.
        mask_same_image: Whether other pairs with the same image (on any process) count as neither positive
            nor negative; if not, they are negatives, as in the official code.
        shares: How many pairs each process has, by rank. None = the processes tell each other, for which the host
            waits for the device.
    """
    with torch.autocast(device_type=images.device.type, enabled=False):
        local = torch.stack([images.float(), texts.float()], dim=1)
        gathered, gathered_ids, offset, processes = global_batch(local, image_ids, shares)
        scale = logit_scale.float().exp()
        own = torch.arange(offset, offset + len(local), device=local.device)
        image_to_text = scale * (local[:, 0] @ gathered[:, 1].T)
        text_to_image = scale * (local[:, 1] @ gathered[:, 0].T)
        if mask_same_image:
            same = image_ids.unsqueeze(1) == gathered_ids.unsqueeze(0)
            same = same.scatter(1, own.unsqueeze(1), False)
            image_to_text = image_to_text.masked_fill(same, -torch.inf)
            text_to_image = text_to_image.masked_fill(same, -torch.inf)
        rows = functional.cross_entropy(image_to_text, own, reduction="sum")
        columns = functional.cross_entropy(text_to_image, own, reduction="sum")
        return (rows + columns) / 2 * (processes / len(gathered))


def sigmoid_loss(
    images: Tensor,
    texts: Tensor,
    *,
    logit_scale: Tensor,
    logit_bias: Tensor,
    image_ids: Tensor,
    mask_same_image: bool,
    shares: Sequence[int] | None = None,
) -> Tensor:
    """SigLIP's loss of the global batch, as this process's part of it: each pair is a yes or no of its own.

    With S = exp(logit_scale) * images @ texts^T + logit_bias of the global batch of B pairs, the loss is
    -(sum over i of log sigmoid(S[i, i]) + sum over i and j != i of log sigmoid(-S[i, j])) / B. A process computes the
    rows of its own images against all texts, times the number of processes over B; what `contrastive_loss` says of
    several processes and of the arguments holds here too. `logit_bias` has one element.

    Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (arXiv 2303.15343).
    """
    with torch.autocast(device_type=images.device.type, enabled=False):
        gathered, gathered_ids, offset, processes = global_batch(texts.float(), image_ids, shares)
        own = torch.arange(offset, offset + len(images), device=images.device).unsqueeze(1)
        logits = logit_scale.float().exp() * (images.float() @ gathered.T) + logit_bias.float()
        signs = torch.full_like(logits, -1.0).scatter(1, own, 1.0)
        likelihood = functional.logsigmoid(signs * logits)
        if mask_same_image:
            same = image_ids.unsqueeze(1) == gathered_ids.unsqueeze(0)
            likelihood = likelihood.masked_fill(same.scatter(1, own, False), 0.0)
        return -likelihood.sum() * (processes / len(gathered))


def momentum_contrastive_loss(
    images: Tensor,
    texts: Tensor,
    *,
    slow: tuple[Tensor, Tensor],
    queue: tuple[Tensor, Tensor, Tensor],
    logit_scale: Tensor,
    image_ids: Tensor,
    distillation: float,
    shares: Sequence[int] | None = None,
) -> Tensor:
    """ALBEF's contrastive loss of the global batch, as this process's part of it.

    The keys K are the slow model's embeddings of the other side: of the global batch, then of the queue. With
    S = exp(logit_scale) * own @ K^T, and S' likewise of the slow model's own embeddings, the loss of a row is the
    cross-entropy of softmax(S) with the target distillation * softmax(S') + (1 - distillation) * (evenly those keys
    that have the image of the row); it is averaged over the rows of both sides. What `contrastive_loss` says of several
    processes holds here too. With one process it is the official loss; theirs has the keys of its own process only,
    and random vectors in the part of the queue that is not filled yet.

    Args:
        images: Embeddings (b, d) of unit length.
        texts: Embeddings (b, d) of unit length; row i belongs to row i of `images`.
        slow: Those of the slow model, images and texts, without a gradient.
        queue: Its embeddings of images (q, d) and texts (q, d) of earlier batches, and the image ids of these (q,).
        logit_scale: The logarithm of the scale, ().
        image_ids: (b,), int64, unique over the data set.
        distillation: Share of the target that is the slow model's opinion.
        shares: As in `contrastive_loss`.

    Source: Li et al., "Align before Fuse" (arXiv 2107.07651), section 3.4; salesforce/ALBEF, models/model_retrieval.py.
    """
    with torch.autocast(device_type=images.device.type, enabled=False):
        gathered, gathered_ids, _, processes = global_batch(torch.stack(slow, dim=1).float(), image_ids, shares)
        keys = [torch.cat([gathered[:, side], queue[side]]) for side in range(2)]
        same = (image_ids.unsqueeze(1) == torch.cat([gathered_ids, queue[2]])).float()
        scale = logit_scale.float().exp()
        total = torch.zeros((), device=images.device)
        for own, slow_own, others in ((images, slow[0], keys[1]), (texts, slow[1], keys[0])):
            with torch.no_grad():
                opinion = (scale * (slow_own.float() @ others.T)).softmax(dim=1)
                target = distillation * opinion + (1 - distillation) * same / same.sum(dim=1, keepdim=True)
            total = total - ((scale * (own.float() @ others.T)).log_softmax(dim=1) * target).sum()
        return total / 2 * (processes / len(gathered))


def classification_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    """The mean cross-entropy of the global batch, as this process's part of it.

    The mean over the processes is the loss, and gradients averaged over them are those of one process with the
    global batch, also where local batches differ in size or are empty.

    Args:
        logits: Scores (b, classes).
        labels: Places of the right classes (b,), int64.
        label_smoothing: Share of the target that is spread evenly over all classes.
    """
    total = functional.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=label_smoothing)
    if not several_processes():
        return total / len(labels)
    count = torch.tensor(len(labels), dtype=torch.float32, device=logits.device)
    distributed.all_reduce(count)
    return total * (distributed.get_world_size() / count)


@torch.no_grad()
def clamp_logit_scale(logit_scale: nn.Parameter, *, largest: float) -> None:
    """Bound exp(logit_scale) by `largest`, in place; a frozen scale is left alone.

    It belongs after the optimizer's step: a clamp in the forward would leave the scale without a gradient,
    and so for ever at the bound.
    """
    if logit_scale.requires_grad:
        logit_scale.clamp_(max=torch.tensor(largest).log().item())


def several_processes() -> bool:
    """Whether this process is one of several that train or evaluate together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gather_rows(rows: Tensor, shares: Sequence[int] | None = None) -> Tensor:
    """The rows (b, ...) of all processes in rank order, without a gradient; `shares` as in `contrastive_loss`."""
    with torch.no_grad():
        return global_batch(rows, rows.new_zeros(len(rows), dtype=torch.int64), shares)[0]


def global_batch(
    rows: Tensor, image_ids: Tensor, shares: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, int, int]:
    """Rows and ids of all processes in rank order, where this process's begin, the number of processes."""
    if not several_processes():
        return rows, image_ids, 0, 1
    sizes = _ask_sizes(rows) if shares is None else list(shares)
    rank = distributed.get_rank()
    if len(sizes) != distributed.get_world_size() or sizes[rank] != len(rows):
        raise ValueError(f"rank {rank} of {distributed.get_world_size()} has {len(rows)} rows, shares are {sizes}")
    gathered: Tensor = _GatherRows.apply(rows, sizes)
    return gathered, _gather(image_ids, sizes), sum(sizes[:rank]), len(sizes)


def _ask_sizes(rows: Tensor) -> list[int]:
    """How many rows each process has."""
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes: list[int] = torch.cat(counts).tolist()
    return sizes


def _gather(rows: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate the rows (b_r, ...) of every rank r, where b_r = sizes[r]."""
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _GatherRows(torch.autograd.Function):
    """`_gather` with a gradient: each rank gets for its rows what all ranks' losses say of them, summed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _gather(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        distributed.all_reduce(gradient)
        begin = sum(ctx.sizes[: distributed.get_rank()])
        return gradient[begin : begin + ctx.sizes[distributed.get_rank()]], None

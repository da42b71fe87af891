"""Tensors of which each process holds a part (`trainer=fsdp`), beside those that every process holds whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, without a gradient. The processes send each other their parts, so all of them have to ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory and without a gradient; it may be empty."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def laid_out_like(values: Tensor, pattern: Tensor) -> Tensor:
    """Values that every process has whole, on the device of `pattern` of the same shape and sharded as this is.

    All processes have to ask.
    """
    values = values.to(pattern.device)
    if not isinstance(pattern, DTensor):
        return values
    return distribute_tensor(values, pattern.device_mesh, pattern.placements)

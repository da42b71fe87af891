"""Sharding a model over the processes by FSDP2: each holds its part of every tensor, frozen or not.

A block's weights are gathered while it runs, forwards and backwards; so are an embedding's. All else (adapters, heads,
norms outside the blocks) is gathered for a whole forward pass, and again for a whole backward pass. A frozen weight is
only gathered; of one that trains, the gradients are averaged over the processes, and each gets those of its part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from mwa_lightning.backbones.base import Backbone
from mwa_lightning.sharded_tensors import own_part
from mwa_lightning.tasks.model import AdaptedModel


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of a model only."""
    return isinstance(model, FSDPModule)


def shard(model: AdaptedModel, mesh: DeviceMesh) -> None:
    """Shard a model that all processes have alike over a mesh of one dimension; from now on `run` uses it.

    Scalars (the scale of the logits) cannot be sharded: they stay whole, and their gradients are averaged here.
    """
    for parts in _units(model.backbone):
        fully_shard(parts, mesh=mesh)
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    # Gathered anew for the backward pass. So there are no weights but the processes' own parts outside of `run`.
    fully_shard(model, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
    register_fsdp_forward_method(model, AdaptedModel.run.__name__)
    for scalar in scalars:
        scalar.data = scalar.data.to(mesh.device_type)  # where all else is now
        if scalar.requires_grad:
            scalar.register_hook(lambda gradient: _average(gradient, mesh))


def clip_gradients(parameters: Sequence[nn.Parameter], *, limit: float, by_value: bool = False) -> None:
    """Scale the gradients of parameters, sharded or not, by min(1, limit / the norm of all of them together).

    `by_value` bounds each number by `limit` instead.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [own_part(gradient) for gradient in gradients]
    if by_value:
        for part in parts:
            part.clamp_(-limit, limit)
        return
    pairs = list(zip(parts, gradients, strict=True))
    sharded = [part for part, gradient in pairs if part is not gradient]
    if not sharded:
        nn.utils.clip_grad_norm_(parameters, limit)
        return
    total = torch.stack(torch._foreach_norm(sharded)).square().sum()
    distributed.all_reduce(total)
    for part, gradient in pairs:
        if part is gradient:
            total = total + part.square().sum()
    torch._foreach_mul_(parts, (limit / (total.sqrt() + 1e-6)).clamp(max=1.0))


def _units(backbone: Backbone) -> list[list[nn.Module]]:
    """What is gathered at one time: an embedding, a block, or neighbouring blocks that have layers in common."""
    units: list[list[nn.Module]] = [[embedding] for embedding in backbone.embeddings]
    seen: set[nn.Module] = set()
    for stream in backbone.streams:
        for _, block in backbone.layers(stream):
            if block not in seen:
                seen.add(block)
                before = {parameter for part in units[-1] for parameter in part.parameters()}
                if before.isdisjoint(block.parameters()):
                    units.append([block])
                else:
                    units[-1].append(block)
    return units


def _average(gradient: Tensor, mesh: DeviceMesh) -> Tensor:
    """The mean of a gradient over the processes."""
    total = gradient.clone()
    distributed.all_reduce(total, group=mesh.get_group())
    return total / mesh.size()

"""The norms of a backbone that a task runs through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.blocks import Block, Routed
from mwa_lightning.backbones.sites import Stream


def reached_norms(backbone: Backbone, streams: Sequence[Stream], *, first_layer: int = 0) -> list[nn.Module]:
    """The norms that tokens of `streams` pass in the layers from `first_layer` up and outside the layers, each once.

    Sub-norms count; the experts of other streams do not, nor a norm of cross-attention where nothing is fused. With a
    `first_layer` above 0, of the norms outside the layers only those above the last one count: one below would put the
    lowest layers into the graph.
    """
    found: dict[int, nn.Module] = {}
    in_blocks: set[int] = set()
    for stream in backbone.streams:
        for layer, block in backbone.layers(stream):
            in_blocks |= {id(module) for module in block.modules()}
            if stream in streams and stream not in backbone.joint_streams and layer >= first_layer:
                found |= {id(norm): norm for norm in _norms_of(block, stream)}
    elsewhere = {
        id(norm)
        for routed in backbone.modules()
        if isinstance(routed, Routed) and routed.sole is None
        for stream, norm in routed.items()
        if stream not in streams
    }
    for name, module in backbone.named_modules():
        if not isinstance(module, nn.LayerNorm) or id(module) in in_blocks | elsewhere:
            continue
        weight = f"{name}.weight"
        if weight not in backbone.unreachable and (first_layer == 0 or backbone.layers_above(weight) == 0):
            found[id(module)] = module
    return list(found.values())


def _norms_of(block: Block, stream: Stream) -> Iterator[nn.Module]:
    """The norms of a block that the tokens of a stream pass."""
    yield block.attention_norm.of(stream)
    if block.attention.inner_norm is not None:
        yield block.attention.inner_norm.of(stream)
    if block.cross_norm is not None and stream == "fusion":
        yield block.cross_norm.of(stream)
    yield block.ffn_norm.of(stream)
    inner = getattr(block.ffn.of(stream), "inner_norm", None)
    if inner is not None:
        yield inner

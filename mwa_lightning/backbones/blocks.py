"""The one transformer block of every backbone, with slots that adapters fill.

Shapes: b samples, n tokens of one stream, m tokens of the whole sequence, d width, h heads, f hidden width of the
feed-forward network. A block works on *segments*: an ordered dict from stream to the tokens (b, n, d) of that stream.
Attention runs over all segments together; norms and linear layers are routed, one expert a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mwa_lightning.backbones.sites import Branch, Place, Slot, SlotContext, SlotModule, Stream

Segments = dict[Stream, Tensor]


class SequenceMask(NamedTuple):
    """Which tokens are real: by stream (b, n), bool or None for all, and as a mask for attention (b, 1, 1, m)."""

    by_stream: dict[Stream, Tensor | None]
    attention: Tensor | None

    @classmethod
    def of(cls, segments: Segments, by_stream: dict[Stream, Tensor | None]) -> SequenceMask:
        """Join the masks of the segments, in their order; None where every token of every segment is real."""
        if all(by_stream[stream] is None for stream in segments):
            return cls(by_stream, None)
        parts = []
        for stream, tokens in segments.items():
            mask = by_stream[stream]
            parts.append(tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask)
        return cls(by_stream, torch.cat(parts, dim=1)[:, None, None, :])


def routed(streams: Sequence[Stream], make: Callable[[], nn.Module]) -> nn.ModuleDict:
    """One expert a stream, each made by `make`."""
    return nn.ModuleDict({stream: make() for stream in streams})


def initialize_linear(layer: nn.Linear) -> nn.Linear:
    """Draw the weights as official BEiT-3 does: normal with std 0.02, cut at +-0.02; zero bias."""
    nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.02, b=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Attention(nn.Module):
    """Multi-head self-attention over all segments, with routed projections and a norm on the concatenated heads.

    Source: torchscale 0.2.0, component/multihead_attention.py (`subln=True`).
    """

    def __init__(self, *, width: int, heads: int, streams: Sequence[Stream], norm_epsilon: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads

        def linear() -> nn.Module:
            return initialize_linear(nn.Linear(width, width))

        self.query = routed(streams, linear)
        self.key = routed(streams, linear)
        self.value = routed(streams, linear)
        self.inner_norm = routed(streams, lambda: nn.LayerNorm(width, eps=norm_epsilon))
        self.output = routed(streams, linear)

    def forward(self, segments: Segments, mask: SequenceMask) -> Segments:
        """Let all tokens attend to all real ones; each segment keeps its shape (b, n, d)."""

        def project(experts: nn.ModuleDict) -> Tensor:
            joined = torch.cat([experts[stream](tokens) for stream, tokens in segments.items()], dim=1)  # (b, m, d)
            return joined.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b, h, m, d/h)

        mixed = functional.scaled_dot_product_attention(
            project(self.query), project(self.key), project(self.value), attn_mask=mask.attention
        )
        mixed = mixed.transpose(1, 2).flatten(2)  # (b, m, d)
        parts = mixed.split([tokens.shape[1] for tokens in segments.values()], dim=1)
        return {
            stream: self.output[stream](self.inner_norm[stream](part))
            for stream, part in zip(segments, parts, strict=True)
        }


class FeedForward(nn.Module):
    """Two linear layers with exact GELU and a norm on the hidden channels between them.

    Source: torchscale 0.2.0, component/feedforward_network.py (`subln=True`).
    """

    def __init__(self, *, width: int, hidden_width: int, norm_epsilon: float) -> None:
        super().__init__()
        self.up = initialize_linear(nn.Linear(width, hidden_width))
        self.inner_norm = nn.LayerNorm(hidden_width, eps=norm_epsilon)
        self.down = initialize_linear(nn.Linear(hidden_width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (b, n, d) to (b, n, d)."""
        return self.down(self.inner_norm(functional.gelu(self.up(tokens))))


class Block(nn.Module):
    """A pre-norm transformer block with routed experts, sub-norms and slots.

    Slots are filled from outside by `fill`; the block refers to the modules but does not own them (they are no
    submodules: parameters, state and mode belong to the adapter). An empty slot costs nothing.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        ffn_width: int,
        streams: Sequence[Stream],
        drop_path: float,
        norm_epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.attention_norm = routed(streams, lambda: nn.LayerNorm(width, eps=norm_epsilon))
        self.attention = Attention(width=width, heads=heads, streams=streams, norm_epsilon=norm_epsilon)
        self.ffn_norm = routed(streams, lambda: nn.LayerNorm(width, eps=norm_epsilon))
        self.ffn = routed(streams, lambda: FeedForward(width=width, hidden_width=ffn_width, norm_epsilon=norm_epsilon))
        # A plain dict, so that the modules in it are not registered here.
        self.slots: dict[Place, SlotModule] = {}

    def fill(self, place: Place, module: SlotModule) -> None:
        """Put a module into a slot. Raises ValueError if the slot is taken."""
        if place in self.slots:
            raise ValueError(f"the slot {place} is taken")
        self.slots[place] = module

    def forward(self, segments: Segments, mask: SequenceMask) -> Segments:
        """Run the block; each segment keeps its shape (b, n, d)."""
        entered = segments = self._call("block", "input", segments, segments, mask)

        branch = self.attention({s: self.attention_norm[s](x) for s, x in segments.items()}, mask)
        segments = self._add_branch("self_attn", branch, segments, mask)

        branch = {s: self.ffn[s](self.ffn_norm[s](x)) for s, x in segments.items()}
        segments = self._add_branch("ffn", branch, segments, mask)

        return self._call("block", "on_top", segments, entered, mask)

    def _add_branch(self, name: Branch, branch: Segments, residual: Segments, mask: SequenceMask) -> Segments:
        """Add a branch's output, adapted, to the residual stream."""
        branch = self._call(name, "after", branch, residual, mask)
        if self.training and self.drop_path > 0:
            branch = self._drop_path(branch)
        branch = self._call(name, "beside", branch, residual, mask)
        return {stream: residual[stream] + tokens for stream, tokens in branch.items()}

    def _drop_path(self, branch: Segments) -> Segments:
        """Drop the branch for a random part of the samples, all segments of a sample together."""
        first = next(iter(branch.values()))
        keep = first.new_empty((first.shape[0], 1, 1)).bernoulli_(1 - self.drop_path) / (1 - self.drop_path)
        return {stream: tokens * keep for stream, tokens in branch.items()}

    def _call(self, branch: Branch, slot: Slot, current: Segments, entered: Segments, mask: SequenceMask) -> Segments:
        """Call what fills the slot: the streams' own modules first, then the one on the joint sequence."""
        if not self.slots:
            return current
        joint = len(current) > 1
        split = current["vision"].shape[1] if joint else None
        result = dict(current)
        for stream in current:
            module = self.slots.get(Place(stream, branch, slot))
            if module is not None:
                context = SlotContext(stream, mask.by_stream[stream], split)
                result[stream] = module(result[stream], entered[stream], context)
        module = self.slots.get(Place("fusion", branch, slot)) if joint else None
        if module is not None:
            joint_mask = None if mask.attention is None else mask.attention[:, 0, 0]
            tokens = module(
                torch.cat(list(result.values()), dim=1),
                torch.cat([entered[stream] for stream in result], dim=1),
                SlotContext("fusion", joint_mask, split),
            )
            lengths = [part.shape[1] for part in result.values()]
            result = dict(zip(result, tokens.split(lengths, dim=1), strict=True))
        return result

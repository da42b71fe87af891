"""The one transformer block of every backbone, with slots that adapters fill.

Shapes: b samples, n tokens of one stream, m tokens of the whole sequence, k tokens of an image, d width, h heads,
f hidden width of the feed-forward network. A block works on *segments*: an ordered dict from stream to the tokens
(b, n, d) of that stream. Self-attention runs over all segments together; norms and linear layers are routed, one expert
a stream. Where a block has cross-attention, its tokens also attend to the *memory*: the vision tokens (b, k, d') of one
image or more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mwa_lightning.backbones.sites import Branch, Place, Slot, SlotContext, SlotModule, Stream
from mwa_lightning.errors import ConfigError

Segments = dict[Stream, Tensor]
Memory = Sequence[Tensor]
ActivationName = Literal["gelu", "gelu_tanh", "quick_gelu"]


def _quick_gelu(x: Tensor) -> Tensor:
    """The approximation x * sigmoid(1.702 x) of the first CLIP models."""
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
}


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


class Routed(nn.ModuleDict):
    """One expert a stream; a sole expert serves every stream (text layers that also run as fusion layers)."""

    def __init__(self, streams: Sequence[Stream], make: Callable[[], nn.Module]) -> None:
        super().__init__({stream: make() for stream in streams})
        self.sole: Stream | None = streams[0] if len(streams) == 1 else None

    def of(self, stream: Stream) -> nn.Module:
        """The expert of a stream."""
        return self[self.sole or stream]

    def each(self, segments: Segments) -> Segments:
        """Run each segment through its expert."""
        return {stream: self.of(stream)(tokens) for stream, tokens in segments.items()}


def initialize_linear(layer: nn.Linear) -> nn.Linear:
    """Draw the weights as official BEiT-3 does: normal with std 0.02, cut at +-0.02; zero bias."""
    nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.02, b=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(b, m, d) as (b, h, m, d/h)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def _check_heads(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ConfigError(
            f"the width {width} of a backbone is not a multiple of its number of attention heads, {heads}; give a "
            "number that divides it"
        )


class Attention(nn.Module):
    """Multi-head self-attention over all segments, with routed projections.

    `sub_norm` puts a norm on the concatenated heads; `causal` lets a token attend to itself and those before it only
    (padding then lies behind all real tokens, and needs no mask).

    Source of the sub-norm: torchscale 0.2.0, component/multihead_attention.py (`subln=True`).
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        streams: Sequence[Stream],
        norm_epsilon: float,
        sub_norm: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        _check_heads(width, heads)
        self.heads = heads
        self.causal = causal

        def linear() -> nn.Module:
            return initialize_linear(nn.Linear(width, width))

        self.query = Routed(streams, linear)
        self.key = Routed(streams, linear)
        self.value = Routed(streams, linear)
        self.inner_norm = Routed(streams, lambda: nn.LayerNorm(width, eps=norm_epsilon)) if sub_norm else None
        self.output = Routed(streams, linear)

    def forward(self, segments: Segments, mask: SequenceMask) -> Segments:
        """Let all tokens attend to all real ones; each segment keeps its shape (b, n, d)."""

        def project(experts: Routed) -> Tensor:
            return _split_heads(torch.cat(list(experts.each(segments).values()), dim=1), self.heads)

        mixed = functional.scaled_dot_product_attention(
            project(self.query),
            project(self.key),
            project(self.value),
            attn_mask=None if self.causal else mask.attention,
            is_causal=self.causal,
        )
        mixed = mixed.transpose(1, 2).flatten(2)  # (b, m, d)
        parts = mixed.split([tokens.shape[1] for tokens in segments.values()], dim=1)
        result: Segments = dict(zip(segments, parts, strict=True))
        if self.inner_norm is not None:
            result = self.inner_norm.each(result)
        return self.output.each(result)


class CrossAttention(nn.Module):
    """Multi-head attention from the tokens of one stream to the vision tokens of some of the images.

    `images` are the places in the memory that are attended to, each by projections of its own. The outputs are
    averaged, or with `merge` concatenated and brought back to the width by one more linear layer.

    Source: the NLVR2 forms of BLIP (salesforce/BLIP, models/nlvr_encoder.py) and ALBEF (salesforce/ALBEF,
    models/xbert.py); with one image it is BERT's cross-attention.
    """

    def __init__(
        self, *, width: int, memory_width: int, heads: int, images: Sequence[int] = (0,), merge: bool = False
    ) -> None:
        super().__init__()
        _check_heads(width, heads)
        self.heads = heads
        self.images = tuple(images)

        def linears(width_in: int) -> nn.ModuleList:
            return nn.ModuleList(initialize_linear(nn.Linear(width_in, width)) for _ in self.images)

        self.query = linears(width)
        self.key = linears(memory_width)
        self.value = linears(memory_width)
        self.output = linears(width)
        self.merge = initialize_linear(nn.Linear(len(self.images) * width, width)) if merge else None

    def forward(self, tokens: Tensor, memory: Memory) -> Tensor:
        """Map tokens (b, n, d), attending to memory[i] (b, k, d') for each i of `images`, to (b, n, d).

        A memory (1, k, d') is that of every sample; its keys and values are computed once.
        """
        attended = []
        for place, image in enumerate(self.images):
            mixed = functional.scaled_dot_product_attention(
                _split_heads(self.query[place](tokens), self.heads),
                _split_heads(self.key[place](memory[image]), self.heads).expand(tokens.shape[0], -1, -1, -1),
                _split_heads(self.value[place](memory[image]), self.heads).expand(tokens.shape[0], -1, -1, -1),
            )
            attended.append(self.output[place](mixed.transpose(1, 2).flatten(2)))
        if self.merge is not None:
            return self.merge(torch.cat(attended, dim=-1))
        return attended[0] if len(attended) == 1 else torch.stack(attended).mean(dim=0)


class FeedForward(nn.Module):
    """Two linear layers with an activation, and with `sub_norm` a norm on the hidden channels, between them.

    Source of the sub-norm: torchscale 0.2.0, component/feedforward_network.py (`subln=True`).
    """

    def __init__(
        self,
        *,
        width: int,
        hidden_width: int,
        norm_epsilon: float,
        sub_norm: bool = False,
        activation: ActivationName = "gelu",
    ) -> None:
        super().__init__()
        self.up = initialize_linear(nn.Linear(width, hidden_width))
        self.activation = ACTIVATIONS[activation]
        self.inner_norm = nn.LayerNorm(hidden_width, eps=norm_epsilon) if sub_norm else None
        self.down = initialize_linear(nn.Linear(hidden_width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (b, n, d) to (b, n, d)."""
        hidden = self.activation(self.up(tokens))
        return self.down(hidden if self.inner_norm is None else self.inner_norm(hidden))


class Block(nn.Module):
    """A transformer block with routed experts and slots.

    The norms stand before the branches (`norm_first`) or after the residual adds, as in BERT. `sub_norm`, `activation`
    and `causal` are those of attention and feed-forward network. A cross-attention, where there is one, stands between
    the two and runs when there is a memory.

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
        drop_path: float = 0.0,
        norm_epsilon: float = 1e-5,
        norm_first: bool = True,
        sub_norm: bool = False,
        activation: ActivationName = "gelu",
        causal: bool = False,
        cross_attention: CrossAttention | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.drop_path = drop_path
        self.norm_first = norm_first

        def norms() -> Routed:
            return Routed(streams, lambda: nn.LayerNorm(width, eps=norm_epsilon))

        self.attention_norm = norms()
        self.attention = Attention(
            width=width, heads=heads, streams=streams, norm_epsilon=norm_epsilon, sub_norm=sub_norm, causal=causal
        )
        self.cross_norm = norms() if cross_attention is not None else None
        self.cross_attention = cross_attention
        self.ffn_norm = norms()
        self.ffn = Routed(
            streams,
            lambda: FeedForward(
                width=width,
                hidden_width=ffn_width,
                norm_epsilon=norm_epsilon,
                sub_norm=sub_norm,
                activation=activation,
            ),
        )
        # A plain dict, so that the modules in it are not registered here.
        self.slots: dict[Place, SlotModule] = {}

    def fill(self, place: Place, module: SlotModule) -> None:
        """Put a module into a slot. Raises ValueError if the slot is taken."""
        if place in self.slots:
            raise ValueError(f"the slot {place} is taken")
        self.slots[place] = module

    def forward(self, segments: Segments, mask: SequenceMask, memory: Memory = ()) -> Segments:
        """Run the block; each segment keeps its shape (b, n, d).

        A block without cross-attention only tells its slots of the memory: that its tokens meet an image later.
        """
        fused = len(segments) > 1 or len(memory) > 0
        entered = segments = self._call("block", "input", segments, segments, mask, fused)
        segments = self._branch(
            "self_attn", self.attention_norm, lambda fed: self.attention(fed, mask), segments, mask, fused
        )
        if self.cross_attention is not None and self.cross_norm is not None and memory:
            cross_attention = self.cross_attention
            segments = self._branch(
                "cross_attn",
                self.cross_norm,
                lambda fed: {stream: cross_attention(tokens, memory) for stream, tokens in fed.items()},
                segments,
                mask,
                fused,
            )
        segments = self._branch("ffn", self.ffn_norm, self.ffn.each, segments, mask, fused)
        return self._call("block", "on_top", segments, entered, mask, fused)

    def _branch(
        self,
        name: Branch,
        norm: Routed,
        run: Callable[[Segments], Segments],
        residual: Segments,
        mask: SequenceMask,
        fused: bool,
    ) -> Segments:
        """Add a branch's output, adapted, to the residual stream; norm before or after."""
        branch = run(norm.each(residual) if self.norm_first else residual)
        branch = self._call(name, "after", branch, residual, mask, fused)
        if self.training and self.drop_path > 0:
            branch = self._drop_path(branch)
        branch = self._call(name, "beside", branch, residual, mask, fused)
        added: Segments = {stream: residual[stream] + tokens for stream, tokens in branch.items()}
        return added if self.norm_first else norm.each(added)

    def _drop_path(self, branch: Segments) -> Segments:
        """Drop the branch for a random part of the samples, all segments of a sample together."""
        first = next(iter(branch.values()))
        keep = first.new_empty((first.shape[0], 1, 1)).bernoulli_(1 - self.drop_path) / (1 - self.drop_path)
        return {stream: tokens * keep for stream, tokens in branch.items()}

    def _call(
        self, branch: Branch, slot: Slot, current: Segments, entered: Segments, mask: SequenceMask, fused: bool
    ) -> Segments:
        """Call what fills the slot: the streams' own modules first, then the one on the joint sequence."""
        if not self.slots:
            return current
        joint = len(current) > 1
        split = current["vision"].shape[1] if joint else None
        result = dict(current)
        for stream in current:
            module = self.slots.get(Place(stream, branch, slot))
            if module is not None:
                context = SlotContext(stream, mask.by_stream[stream], split, fused)
                result[stream] = module(result[stream], entered[stream], context)
        module = self.slots.get(Place("fusion", branch, slot)) if joint else None
        if module is not None:
            joint_mask = None if mask.attention is None else mask.attention[:, 0, 0]
            tokens = module(
                torch.cat(list(result.values()), dim=1),
                torch.cat([entered[stream] for stream in result], dim=1),
                SlotContext("fusion", joint_mask, split, fused),
            )
            lengths = [part.shape[1] for part in result.values()]
            result = dict(zip(result, tokens.split(lengths, dim=1), strict=True))
        return result

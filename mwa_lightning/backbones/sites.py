"""Places where an adapter may be put: what a backbone offers and an adapter method fills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

Stream = Literal["vision", "text", "fusion"]
Branch = Literal["self_attn", "cross_attn", "ffn", "block"]
Slot = Literal["input", "after", "beside", "on_top"]


@dataclass(frozen=True)
class Site:
    """One place where an adapter may be put.

    `stream` is the kind of tokens, `layer` counts from 0, `branch` is the part of the block, `slot` the kind of place:

    - `input` (of `block`): replaces what enters the block;
    - `after` (of `self_attn`, `cross_attn`, `ffn`): on the branch's output, before drop path and the residual add;
    - `beside` (of `self_attn`, `cross_attn`, `ffn`): parallel to it, fed with the residual stream, outside drop path;
    - `on_top` (of `block`): after the whole block.

    `width` is the number of channels there. `fusion` sites act on text tokens in the layers, and passes, in which these
    see the image. In a Multiway transformer, `vision` and `text` sites act on their tokens wherever these occur, in a
    joint sequence too; `fusion` sites then act besides them, on the joint sequence only (`joint`).
    """

    stream: Stream
    layer: int
    branch: Branch
    slot: Slot
    width: int
    joint: bool = False

    @property
    def place(self) -> Place:
        """The site's key within its block."""
        return Place(self.stream, self.branch, self.slot)

    def __str__(self) -> str:
        return f"{self.stream} layer {self.layer}, {self.slot} {self.branch}"


class Place(NamedTuple):
    """A site within one block."""

    stream: Stream
    branch: Branch
    slot: Slot


class SlotContext(NamedTuple):
    """What a slot may know besides its tensors.

    `stream` is the stream of the tokens; `mask` (b, n), bool, is True on real tokens, or None where all are;
    `split` is the number of vision tokens at the head of a joint sequence, or None outside one; `fused` says whether
    text and image meet in this pass, in this layer or in a later one.
    """

    stream: Stream
    mask: Tensor | None
    split: int | None
    fused: bool = False


# `slot(y, x, context)`: y (b, n, d) is what stands there now, x (b, n, d) the residual stream that entered the branch
# (for `block`: the block); the result (b, n, d) takes y's place.
SlotModule = Callable[[Tensor, Tensor, SlotContext], Tensor]

PLACES: tuple[tuple[Branch, Slot], ...] = (
    ("block", "input"),
    ("self_attn", "after"),
    ("self_attn", "beside"),
    ("cross_attn", "after"),
    ("cross_attn", "beside"),
    ("ffn", "after"),
    ("ffn", "beside"),
    ("block", "on_top"),
)

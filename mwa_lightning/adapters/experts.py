"""The experts of ModeX: of one modality, and coordinated ones where the modalities meet.

Shapes: b samples, n tokens, d width, r width of the bottleneck, 3 experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mwa_lightning.adapters.mwa import Bottleneck
from mwa_lightning.backbones.sites import SlotContext

# The order of the coordinator's outputs, as in the authors' code.
EXPERTS = ("text", "vision", "cross")

CoordinatorForm = Literal["softmax", "uniform", "top1"]


class Expert(nn.Module):
    """Of one modality: y + Up(ReLU(Down(y))). The identity when freshly made."""

    def __init__(self, *, width: int, mid_dim: int) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(width=width, mid_dim=mid_dim)

    def forward(self, y: Tensor, x: Tensor, context: SlotContext) -> Tensor:
        """Add to what stands in the slot, y (b, n, d), what the bottleneck makes of it."""
        return y + self.bottleneck(y)


class UnfusedExpert(Expert):
    """An `Expert` of texts that run alone: the identity in a pass that goes on to see an image."""

    def forward(self, y: Tensor, x: Tensor, context: SlotContext) -> Tensor:
        """As `Expert`, or y (b, n, d) itself."""
        return y if context.fused else super().forward(y, x, context)


class KeptWeights(NamedTuple):
    """The weights (b, n, 3) of one pass, and the mask (b, n) of the real tokens or None for all."""

    weights: Tensor
    mask: Tensor | None


class Record:
    """What a coordinator's weights were since the record was begun; padding does not count.

    `totals` (5,) sums over tokens: the three weights, the entropy in nats, and one. With `per_token` the weights of
    each pass are kept too, until somebody empties `passes`.
    """

    def __init__(self, *, per_token: bool = False) -> None:
        self.per_token = per_token
        self.totals: Tensor | None = None
        self.passes: list[KeptWeights] = []

    def add(self, weights: Tensor, mask: Tensor | None) -> None:
        """Take in weights (b, n, 3), fp32, of tokens with mask (b, n); no sizes depend on values: it compiles."""
        weights = weights.detach()
        entropy = torch.special.entr(weights).sum(dim=-1, keepdim=True)
        figures = torch.cat([weights, entropy, torch.ones_like(entropy)], dim=-1).double()
        if mask is not None:
            figures = figures * mask.unsqueeze(-1)
        added = figures.sum(dim=(0, 1))
        self.totals = added if self.totals is None else self.totals + added
        if self.per_token:
            self.passes.append(KeptWeights(weights, mask))


class CoordinatedExperts(nn.Module):
    """Where modalities meet: y + the weighted sum of three experts, the weights chosen anew for each token.

    One down-projection and ReLU are shared, the up-projections are the experts' own, in the order of `EXPERTS`. The
    coordinator is a linear layer on y. Of its logits l, with temperature t:

    - `softmax`: weights softmax(l / t);
    - `top1`: one for the largest logit, zero for the others; the gradient is that of `softmax` (straight-through), so
      that the coordinator also learns of experts that were not chosen;
    - `uniform`: a third each, no coordinator.

    The up-projections are zero when freshly made: the identity. The coordinator is not, for experts with equal weights
    would get equal gradients and never part.

    Source: MEC_adapter of zhangy0822/ModeX (softmax, t = 10); the other two are for ablation.
    """

    def __init__(
        self, *, width: int, mid_dim: int, coordinator: CoordinatorForm = "softmax", temperature: float = 10.0
    ) -> None:
        super().__init__()
        self.form = coordinator
        self.temperature = temperature
        self.down = nn.Linear(width, mid_dim)
        self.ups = nn.ModuleDict({name: nn.Linear(mid_dim, width) for name in EXPERTS})
        self.coordinator = nn.Linear(width, len(EXPERTS)) if coordinator != "uniform" else None
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)
        for up in self._linears():
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
        if self.coordinator is not None:
            nn.init.zeros_(self.coordinator.bias)
        # Filled by `recording` only.
        self.record: Record | None = None

    def forward(self, y: Tensor, x: Tensor, context: SlotContext) -> Tensor:
        """Add to what stands in the slot, y (b, n, d), what the experts make of it."""
        weights = self.weigh(y)
        if self.record is not None:
            self.record.add(weights, context.mask)
        hidden = functional.relu(self.down(y))
        weights = weights.to(hidden.dtype)
        # sum_e w_e (U_e h + b_e) as one product over the weighted hidden channels of all experts: (b, n, 3 r).
        weighted = (weights.unsqueeze(-1) * hidden.unsqueeze(-2)).flatten(-2)
        ups = self._linears()
        biases = torch.stack([up.bias for up in ups]).to(hidden.dtype)
        mixed = functional.linear(weighted, torch.cat([up.weight for up in ups], dim=1))
        return y + (mixed + weights @ biases)

    def _linears(self) -> list[nn.Linear]:
        """The up-projections in the order of `EXPERTS`."""
        return [up for up in self.ups.values() if isinstance(up, nn.Linear)]

    def weigh(self, y: Tensor) -> Tensor:
        """The weights (b, n, 3), fp32, that the tokens y (b, n, d) get; they add up to one."""
        if self.coordinator is None:
            return y.new_full((*y.shape[:-1], len(EXPERTS)), 1 / len(EXPERTS), dtype=torch.float32)
        soft = torch.softmax(self.coordinator(y).float() / self.temperature, dim=-1)
        if self.form == "softmax":
            return soft
        chosen = functional.one_hot(soft.argmax(dim=-1), len(EXPERTS)).to(soft.dtype)
        # The bracket is exactly zero, with the gradient of `soft`.
        return chosen + (soft - soft.detach())


@contextmanager
def recording(module: nn.Module, *, per_token: bool = False) -> Iterator[dict[str, Record]]:
    """Within the context, record the weights of all coordinated experts in `module`, by their names there."""
    found = {name: part for name, part in module.named_modules() if isinstance(part, CoordinatedExperts)}
    records = {name: Record(per_token=per_token) for name in found}
    for name, part in found.items():
        part.record = records[name]
    try:
        yield records
    finally:
        for part in found.values():
            part.record = None

"""MultiWay-Adapter: a New Knowledge Extractor beside each FFN and an Alignment Enhancer on top of each block.

Source: Long et al., "MultiWay-Adapter" (arXiv 2309.01516) and longkukuhi/MultiWay-Adapter. Here every stream is adapted
wherever its tokens occur, in the joint sequence too; the released code left fused input without extractors. In fusion
encoders (ALBEF, BLIP) the fusion layers are a stream like the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.blocks import FeedForward
from mwa_lightning.backbones.sites import SlotContext, Stream
from mwa_lightning.errors import ConfigError

EnhancerForm = Literal["bottleneck", "ffn", "none"]


class Bottleneck(nn.Module):
    """W_up ReLU(W_down x), with a zero-initialised up-projection and dropout on the hidden channels."""

    def __init__(self, *, width: int, mid_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.down = nn.Linear(width, mid_dim)
        self.up = nn.Linear(mid_dim, width)
        self.dropout = dropout
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, n, d) to (b, n, d); zero when freshly made."""
        return self.up(functional.dropout(functional.relu(self.down(x)), self.dropout, self.training))


class NewKnowledgeExtractor(nn.Module):
    """Beside the FFN: y + scale * Bottleneck(x). The identity when freshly made."""

    def __init__(self, *, width: int, mid_dim: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale = scale
        self.bottleneck = Bottleneck(width=width, mid_dim=mid_dim, dropout=dropout)

    def forward(self, y: Tensor, x: Tensor, context: SlotContext) -> Tensor:
        """Add to the FFN's output y (b, n, d) what the bottleneck makes of the residual stream x (b, n, d)."""
        return y + self.scale * self.bottleneck(x)


class AlignmentEnhancer(nn.Module):
    """On top of a block, shared by the streams: y + inner(y).

    `inner` is a `Bottleneck` (the identity when freshly made) or, as in the released code, a full sub-normed FFN.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, y: Tensor, x: Tensor, context: SlotContext) -> Tensor:
        """Add to the block's output y (b, n, d) what `inner` makes of it."""
        return y + self.inner(y)


class MultiWayAdapter(AdapterMethod):
    """Extractors of width `mid_dim`, one per stream and layer, and enhancers, one per layer and shared by the streams.

    Streams of different widths (CLIP's) cannot share an enhancer: there is one for each of them then. `extractor_text`
    stands for the fusion stream of text tokens too. `first_layer` (from 0) is the lowest adapted layer. With
    `enhancer="bottleneck"` the freshly attached adapter leaves the backbone's outputs unchanged; with `"ffn"` (the
    released form) it does not. Raises ConfigError where every part is switched off, or no layer is left.
    """

    learning_rate = 2e-3

    def __init__(
        self,
        *,
        mid_dim: int = 64,
        scale: float = 0.6,
        dropout: float = 0.1,
        extractor_vision: bool = True,
        extractor_text: bool = True,
        enhancer: EnhancerForm = "bottleneck",
        enhancer_dim: int = 192,
        first_layer: int = 0,
        modules_to_save: Sequence[str] | None = None,
    ) -> None:
        super().__init__(modules_to_save=modules_to_save)
        if enhancer not in get_args(EnhancerForm):
            raise ConfigError(f"adapter.enhancer={enhancer}: choose one of {', '.join(get_args(EnhancerForm))}")
        if not (extractor_vision or extractor_text or enhancer != "none"):
            raise ConfigError(
                "adapter=mwa: every part is switched off; set adapter.extractor_vision=true, "
                "adapter.extractor_text=true or adapter.enhancer=bottleneck, or take adapter=head_only"
            )
        self.mid_dim = mid_dim
        self.scale = scale
        self.dropout = dropout
        self.extractor_streams: list[Stream] = []
        if extractor_vision:
            self.extractor_streams.append("vision")
        if extractor_text:
            self.extractor_streams += ["text", "fusion"]
        self.enhancer_form = enhancer
        self.enhancer_dim = enhancer_dim
        self.first_layer = first_layer
        self.extractors = nn.ModuleDict()
        self.enhancers = nn.ModuleDict()

    def place(self, backbone: Backbone, heads: nn.Module, streams: Sequence[Stream]) -> None:
        """Put extractors beside the FFNs and enhancers on top of the blocks, from `first_layer` up."""
        sites = self.require(
            backbone,
            (site for site in backbone.sites(streams) if site.layer >= self.first_layer and not site.joint),
            f"layers from {self.first_layer} up",
        )
        for site in sites:
            if (site.branch, site.slot) == ("ffn", "beside") and site.stream in self.extractor_streams:
                extractor = NewKnowledgeExtractor(
                    width=site.width, mid_dim=self.mid_dim, scale=self.scale, dropout=self.dropout
                )
                self.extractors[f"{site.stream}_{site.layer}"] = extractor
                backbone.fill(site, extractor)
            elif (site.branch, site.slot) == ("block", "on_top") and self.enhancer_form != "none":
                key = str(site.layer) if site.width == sites[0].width else f"{site.layer}_{site.stream}"
                if key not in self.enhancers:
                    self.enhancers[key] = AlignmentEnhancer(self._inner(site.width))
                backbone.fill(site, self.enhancers[key])

    def _inner(self, width: int) -> nn.Module:
        if self.enhancer_form == "bottleneck":
            return Bottleneck(width=width, mid_dim=self.enhancer_dim)
        return FeedForward(width=width, hidden_width=4 * width, norm_epsilon=1e-5, sub_norm=True)

"""An adapter of one's own: scale and shift what each feed-forward network gives (SSF, Lian et al. 2022)."""

from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Gt
from torch import Tensor, nn, ones, zeros

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.sites import SlotContext, Stream


class ScaledShift(nn.Module):
    """scale * y + shift, by channel. The identity when freshly made."""

    def __init__(self, *, width: int, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.scale = nn.Parameter(ones(width))
        self.shift = nn.Parameter(zeros(width))

    def forward(self, y: Tensor, x: Tensor, context: SlotContext) -> Tensor:
        """Change the branch's output y (b, n, d)."""
        return y + self.strength * ((self.scale - 1) * y + self.shift)


class ScaledShiftTuning(AdapterMethod):
    """A scale and a shift after each feed-forward network, or after each attention."""

    def __init__(self, *, strength: Annotated[float, Gt(0)] = 1.0, branch: Literal["ffn", "self_attn"] = "ffn") -> None:
        super().__init__()
        self.strength = strength
        self.branch = branch
        self.shifts = nn.ModuleList()

    def place(self, backbone: Backbone, heads: nn.Module, streams: Sequence[Stream]) -> None:
        """Put one after each branch of the kind that was chosen."""
        wanted = (site for site in backbone.sites(streams) if (site.branch, site.slot) == (self.branch, "after"))
        for site in self.require(backbone, wanted, f"slots after {self.branch}"):
            self.shifts.append(ScaledShift(width=site.width, strength=self.strength))
            backbone.fill(site, self.shifts[-1])

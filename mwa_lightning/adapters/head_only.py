"""Training the heads alone: the floor that an adapter must clear."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.sites import Stream


class HeadOnly(AdapterMethod):
    """Trains the heads over the frozen backbone."""

    def place(self, backbone: Backbone, heads: nn.Module, streams: Sequence[Stream]) -> None:
        """Add nothing: the heads train already."""

"""No adaptation: the pretrained model as it is, for zero-shot evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.sites import Stream


class NoAdapter(AdapterMethod):
    """Trains nothing."""

    def place(self, backbone: Backbone, heads: nn.Module, streams: Sequence[Stream]) -> None:
        """Freeze the heads too."""
        heads.requires_grad_(False)

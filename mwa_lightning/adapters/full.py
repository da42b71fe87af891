"""Full fine-tuning: what every adapter method is measured against."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.sites import Stream


class FullFineTuning(AdapterMethod):
    """Trains the whole backbone and the heads."""

    def place(self, backbone: Backbone, heads: nn.Module, streams: Sequence[Stream]) -> None:
        """Unfreeze all that a task can reach."""
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name not in backbone.unreachable)

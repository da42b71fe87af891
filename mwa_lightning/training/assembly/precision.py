"""16-mixed with fused, gated optimizers and gradient clipping together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.optim import Optimizer

from mwa_lightning.training.optim import GatedAdamW


class GatedMixedPrecision(MixedPrecision):
    """Lightning's 16-mixed, but gradients are unscaled before clipping even if the optimizer could do it.

    Lightning refuses clipping with fused optimizers; unfused ones make the scaler wait for the device in
    every step.
    """

    def __init__(self, *, device: str) -> None:
        super().__init__("16-mixed", device)

    def optimizer_step(  # type: ignore[override]
        self, optimizer: GatedAdamW, model: pl.LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """Run the closure, unscale, clip, step through the scaler."""
        assert self.scaler is not None
        closure()
        self.scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)
        result = self.scaler.step(optimizer, **kwargs)
        self.scaler.update()
        return result

    def clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: int | float = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> None:
        """Clip the gradients, which are unscaled by now."""
        Precision.clip_gradients(self, optimizer, clip_val, gradient_clip_algorithm)

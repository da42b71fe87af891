"""An exponential moving average of the trained parameters."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from mwa_lightning.adapters.files.adapter_file import trained_state
from mwa_lightning.errors import CheckpointError
from mwa_lightning.sharded_tensors import laid_out_like, own_part, whole


class WeightAverage(pl.Callback):
    """After each optimizer step: average = decay * average + (1 - decay) * weights, from the first ones on.

    Validation runs with the average; training goes on with the weights. Only what trains is averaged.
    """

    def __init__(self, *, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._step = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = trained_state(pl_module.get_submodule("model"))
        if not self.average:
            self.average = {name: tensor.clone() for name, tensor in state.items()}
        else:
            self.average = {name: laid_out_like(tensor, state[name]) for name, tensor in self.average.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step, which comes with a checkpoint only after `on_fit_start`; before the first, begin anew.

        The task may have fitted a part of the weights meanwhile.
        """
        self._step = trainer.global_step
        if not self._step:
            self.average = {
                name: tensor.clone() for name, tensor in trained_state(pl_module.get_submodule("model")).items()
            }

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow the weights if this batch ended a step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        weights = trained_state(pl_module.get_submodule("model"))
        averages = [own_part(tensor) for tensor in self.average.values()]
        torch._foreach_lerp_(averages, [own_part(weights[name]) for name in self.average], 1 - self.decay)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average in place of the weights."""
        model = pl_module.get_submodule("model")
        self._weights = {name: tensor.clone() for name, tensor in trained_state(model).items()}
        _copy(self.average, model)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the weights back."""
        _copy(self._weights, pl_module.get_submodule("model"))
        self._weights = {}

    def state_dict(self) -> dict[str, Any]:
        return {"average": {name: whole(tensor) for name, tensor in self.average.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the average up again. Raises CheckpointError if the checkpoint was written without one."""
        if not state_dict["average"]:
            raise CheckpointError("the checkpoint holds no moving average; resume with training.ema_decay=null")
        self.average = state_dict["average"]


@torch.no_grad()
def _copy(state: dict[str, Tensor], model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name in state:
            parameter.copy_(state[name])

"""FSDP2 as a strategy of Lightning's, with our processes and our checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from mwa_lightning.sharded_tensors import laid_out_like, whole
from mwa_lightning.training.distributed.processes import Processes, WorkerLauncher

FSDP = "fsdp"


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 over all processes, without tensor parallelism; the task shards the model (`configure_model`).

    Checkpoints are those of the other strategies: whole tensors, of what trains only. So a run can go on with another
    strategy, and no frozen weight is gathered for a save.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__(data_parallel_size=processes.count, tensor_parallel_size=1, save_distributed_checkpoint=False)
        self._processes = processes

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """The model is sharded before the strategy is set up, so weights are restored as everywhere."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning calls `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What trains, whole, in the first process; the names alone in the others."""
        assert self.lightning_module is not None
        parameters = self.lightning_module.named_parameters()
        return {name: self._collected(parameter) for name, parameter in parameters if parameter.requires_grad}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Fill what trains; the names were compared before."""
        assert self.lightning_module is not None
        state = checkpoint["state_dict"]
        with torch.no_grad():
            for name, parameter in self.lightning_module.named_parameters():
                if name in state:
                    parameter.copy_(laid_out_like(state[name], parameter))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's state with its tensors whole in the first process."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        places = {
            place: {key: self._collected(value) if isinstance(value, Tensor) else value for key, value in entry.items()}
            for place, entry in state["state"].items()
        }
        return {**state, "state": places}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Shard the tensors of the optimizers' states as their parameters are."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            places = {
                place: {
                    key: laid_out_like(value, parameters[place]) if value.shape == parameters[place].shape else value
                    for key, value in entry.items()
                }
                for place, entry in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": places})

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the whole file in every process, by the trainer's plugin."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only=weights_only)

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = WorkerLauncher(
            self.cluster_environment, self.num_processes, self.num_nodes, processes=self._processes
        )

    def _collected(self, tensor: Tensor) -> Tensor:
        """A whole tensor in main memory; in the others than the first process without memory."""
        return whole(tensor).to("cpu" if self.is_global_zero else "meta")

"""What ModeX's coordinators do: figures and a picture of a training run, weights of each token at an evaluation."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from mwa_lightning.adapters.experts import EXPERTS, CoordinatedExperts, KeptWeights, Record, recording
from mwa_lightning.errors import ConfigError
from mwa_lightning.report.examples import Drawing
from mwa_lightning.report.heat_map import heat_map
from mwa_lightning.system.tensor_files import write_tensors
from mwa_lightning.training.loggers.base import LosableLogger, show_drawings
from mwa_lightning.training.runs.run_directory import write_atomically


def check_saving(config: DictConfig, adapter: nn.Module) -> None:
    """Raise ConfigError if `save_coordinator` asks for what this run cannot give."""
    if not config.save_coordinator:
        return
    if not any(isinstance(part, CoordinatedExperts) for part in adapter.modules()):
        raise ConfigError(
            "save_coordinator=true: this model has no coordinated experts for this task; take adapter=modex, and a "
            "backbone and task that fuse text and image"
        )
    trainer = config.trainer
    devices = (
        torch.cuda.device_count() if (trainer.devices, trainer.accelerator) == ("auto", "gpu") else trainer.devices
    )
    if trainer.num_nodes > 1 or devices not in (1, "auto"):
        raise ConfigError(
            "save_coordinator=true: needs all samples in one process; take trainer.devices=1 trainer.num_nodes=1"
        )


class CoordinatorFigures(pl.Callback):
    """Logs, at each validation, the mean weight of each expert and the entropy of the weights; draws the last ones.

    The names are `coordinator/<branch>_<layer>/{text,vision,cross,entropy}`, the entropy (in nats, at most ln 3) is
    averaged over tokens like the weights; padding does not count. All ranks count. The means become a heat map for the
    loggers that take pictures, and at the end of training that of the last validation a file. Without coordinated
    experts nothing happens.
    """

    def __init__(self, *, picture: Path) -> None:
        self.picture = picture
        self.means: dict[str, list[float]] = {}
        self._watching = ExitStack()
        self._records: dict[str, Record] = {}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._records = self._watching.enter_context(recording(_adapter(pl_module)))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log. Here, not at the end of the last batch: a task may run the model once more after it (re-ranking)."""
        self._watching.close()
        figures: dict[str, float] = {}
        for name, record in self._records.items():
            # A process without samples takes part in the sum all the same.
            totals = torch.zeros(5, dtype=torch.float64) if record.totals is None else record.totals
            totals = trainer.strategy.reduce(totals.to(pl_module.device), reduce_op="sum")
            assert isinstance(totals, Tensor)
            if totals[-1] == 0:
                continue
            *means, entropy, _ = (totals / totals[-1]).tolist()
            self.means[name] = means
            figures |= {f"coordinator/{_short(name)}/{expert}": w for expert, w in zip(EXPERTS, means, strict=True)}
            figures[f"coordinator/{_short(name)}/entropy"] = entropy
        self._records = {}
        if figures:
            for logger in trainer.loggers:
                logger.log_metrics({**figures, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
            self._show(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._watching.close()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, if there was a validation."""
        if self.means and trainer.is_global_zero:
            write_atomically(self.picture, self._heat_map())

    def _show(self, trainer: pl.Trainer) -> None:
        """Draw for those who look on, if there are any."""
        if trainer.is_global_zero and any(isinstance(logger, LosableLogger) for logger in trainer.loggers):
            image = Image.open(io.BytesIO(self._heat_map()))
            drawing = Drawing(image.convert("RGB"), f"mean weight of each expert, epoch {trainer.current_epoch + 1}")
            show_drawings(trainer.loggers, "coordinator/heat_map", [drawing], step=trainer.global_step - 1)

    def _heat_map(self) -> bytes:
        return heat_map(_panels(self.means), columns=EXPERTS)


class CoordinatorWeights(pl.Callback):
    """Writes the weights of every token of an evaluation to a file, with where the token stood.

    For each coordinator `<branch>_<layer>.weights` (t, 3), fp32, of the t real tokens, and (t,), int32:

    - `.sample`: the number of the sample in the order of evaluation, from 0; with re-ranking, of the pair;
    - `.position`: the place in the sequence, from 0;
    - `.run`: which time it was that the coordinator saw the sample: two images may be two passes, and the released
      arrangement uses a coordinator twice in a layer.

    With re-ranking, `pairs.image` and `pairs.text` (p,), int32, are the places of each pair's image and text in the
    split, from 0. Equal texts are scored once, as the first of them.

    The metadata names the experts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._watching = ExitStack()
        self._records: dict[str, Record] = {}
        self._parts: dict[str, list[dict[str, Tensor]]] = {}
        self._samples = 0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._records = self._watching.enter_context(recording(_adapter(pl_module), per_token=True))
        self._parts = {name: [] for name in self._records}

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take over the passes of a batch."""
        size = next(len(part) for part in batch if isinstance(part, Tensor))
        for name, record in self._records.items():
            run = 0
            for kept in record.passes:
                # A pass may hold a sample several times, side by side: once for each of its images.
                times = max(1, len(kept.weights) // size)
                self._parts[name].append(_tokens(kept, times=times, first_sample=self._samples, first_run=run))
                run += times
            record.passes.clear()
        self._samples += size

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file. Raises ConfigError if nothing passed."""
        self._watching.close()
        pairs = getattr(pl_module, "scored_pairs", None)
        for name, record in self._records.items():
            # A module may be called several times for the same pairs: one that fills two slots of a layer is.
            rows = sum(len(kept.weights) for kept in record.passes)
            times = rows // len(pairs) if pairs is not None and len(pairs) else 1
            pair = 0
            for number, kept in enumerate(record.passes):
                self._parts[name].append(_tokens(kept, times=1, first_sample=pair, first_run=number % times))
                pair += len(kept.weights) if number % times == times - 1 else 0
        tensors = {
            f"{_short(name)}.{kind}": torch.cat([part[kind] for part in parts])
            for name, parts in self._parts.items()
            if parts
            for kind in parts[0]
        }
        if not tensors:
            raise ConfigError("save_coordinator=true: no batch of this task runs text and image together")
        if pairs is not None:
            tensors |= {"pairs.image": pairs[:, 0].int().contiguous(), "pairs.text": pairs[:, 1].int().contiguous()}
        metadata = {"format": "mwa_lightning coordinator 1", "experts": json.dumps(EXPERTS)}
        write_tensors(self.path, tensors, metadata=metadata)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._watching.close()


def _adapter(pl_module: pl.LightningModule) -> nn.Module:
    return pl_module.get_submodule("model.adapter")


def _short(name: str) -> str:
    """`cross_attn_6` of `coordinated.fusion_6_cross_attn`."""
    branch, layer = _branch_and_layer(name)
    return f"{branch}_{layer}"


def _branch_and_layer(name: str) -> tuple[str, int]:
    _, layer, branch = name.rpartition(".")[2].split("_", 2)
    return branch, int(layer)


def _panels(means: Mapping[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    """By branch, then by layer."""
    panels: dict[str, dict[str, list[float]]] = {}
    for name in sorted(means, key=_branch_and_layer):
        branch, layer = _branch_and_layer(name)
        panels.setdefault(f"after {branch}", {})[f"layer {layer}"] = means[name]
    return panels


def _tokens(kept: KeptWeights, *, times: int, first_sample: int, first_run: int) -> dict[str, Tensor]:
    """The real tokens of one pass, with sample, position and run."""
    rows, length = kept.weights.shape[:2]
    real = torch.ones(rows, length, dtype=torch.bool) if kept.mask is None else kept.mask.cpu()
    row, position = real.nonzero(as_tuple=True)
    return {
        "weights": kept.weights.cpu()[row, position],
        "sample": (first_sample + row // times).int(),
        "position": position.int(),
        "run": (first_run + row % times).int(),
    }

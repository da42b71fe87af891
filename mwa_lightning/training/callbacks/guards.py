"""Guards of a training run: non-finite numbers, and trainable parameters that nothing trains."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn

from mwa_lightning.errors import NotFinite, TrainingError, shorten
from mwa_lightning.sharded_tensors import own_part
from mwa_lightning.training.distributed.processes import gathered
from mwa_lightning.training.optim import GatedAdamW

log = logging.getLogger(__name__)

# As many skipped steps in a row are no accident any more, whatever was asked for.
MOST_SKIPPED_IN_A_ROW = 20

MOST_SAMPLES_NAMED = 8


@dataclass
class StepRecord:
    """What one optimizer step's tensors are called, and which of them are not finite.

    `flags` (bool) has one entry a micro-batch for its loss, then one a name for its gradient; `event`, on
    CUDA, is recorded when the flags have reached the host.
    """

    step: int
    samples: list[Sequence[str]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    flags: Tensor | None = None
    event: torch.cuda.Event | None = None


class NonFiniteGuard(pl.Callback):
    """Keeps non-finite losses and gradients away from the weights, and names them.

    Every step is gated by a flag on the device, so a poisoned step never changes weights. On the CPU the
    flags are read at once; on CUDA they are copied beside the running work and read one step later, which
    stalls nothing.

    `stop` raises NotFinite; `skip` leaves the step out, counts it as `train/skipped_steps` and logs it.
    Under 16-mixed an overflow is the scaler's way of finding its scale: only a non-finite loss counts, of any process.
    Twenty skipped steps in a row end the run in any case.
    """

    def __init__(self, *, action: Literal["stop", "skip"]) -> None:
        self.action = action
        self.skipped = 0
        self._in_a_row = 0
        self._current: StepRecord | None = None
        self._pending: StepRecord | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the samples of a micro-batch."""
        if self._current is None:
            self._current = StepRecord(step=trainer.global_step)
        self._current.samples.append(batch.sample_ids)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Note the loss; a non-finite one poisons its gradients, so all ranks learn of it when reducing."""
        value = loss.detach()
        assert self._current is not None
        self._current.losses.append(value)
        loss.register_hook(lambda gradient: gradient + 0.0 * value)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Close the optimizer's gate if this step is poisoned; report what is known by now."""
        assert isinstance(optimizer, GatedAdamW)
        record, self._current = self._current, None
        assert record is not None
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        model: nn.Module = pl_module.get_submodule("model")
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        record.names = list(gradients)
        record.flags = torch.cat([_not_finite(record.losses), _not_finite_anywhere(list(gradients.values()))])
        optimizer.gate = record.flags.any().float()
        if record.flags.device.type == "cuda":
            flags = torch.empty(record.flags.shape, dtype=torch.bool, pin_memory=True)
            record.flags = flags.copy_(record.flags, non_blocking=True)
            record.event = torch.cuda.Event()
            record.event.record()
            record, self._pending = self._pending, record
        if record is not None:
            self._report(record, scaled=scaled)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the number of skipped steps once there are any."""
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped))

    def flush(self, trainer: pl.Trainer) -> None:
        """Report the step that is still on its way from the device; called before anything is saved."""
        record, self._pending = self._pending, None
        if record is not None:
            self._report(record, scaled=getattr(trainer.precision_plugin, "scaler", None) is not None)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report before the weights are evaluated."""
        self.flush(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the last step."""
        self.flush(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def _report(self, record: StepRecord, *, scaled: bool) -> None:
        """Raise or count if the step was poisoned."""
        if record.event is not None:
            record.event.synchronize()
        assert record.flags is not None
        flags = record.flags.tolist()
        if not any(flags):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        losses, gradients = flags[: len(record.losses)], flags[len(record.losses) :]
        # All processes are here: what one of them finds poisons the gradients of all.
        poisoned, everything = _samples_of(gathered((losses, record.samples)))
        what, samples = "the loss", shorten(poisoned or everything, MOST_SAMPLES_NAMED)
        if not poisoned:
            what = f"the gradient of {record.names[gradients.index(True)]}"
        if scaled and not poisoned:
            if self._in_a_row >= MOST_SKIPPED_IN_A_ROW:
                raise NotFinite(
                    f"step {record.step}: {what} is not finite for the {self._in_a_row}th step in a row in "
                    "16-mixed (samples " + samples + "); take trainer.precision=bf16-mixed or lower optim.lr"
                )
            return
        message = f"step {record.step}: {what} is not finite; samples: {samples}"
        if self.action == "stop":
            raise NotFinite(f"{message}. Lower optim.lr, or set trainer.gradient_clip_val=1 or training.nonfinite=skip")
        self.skipped += 1
        if self._in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise NotFinite(f"{message}. It is the {self._in_a_row}th skipped step in a row; lower optim.lr")
        log.warning("%s. Step skipped (%d so far)", message, self.skipped)


class MissingGradientGuard(pl.Callback):
    """Stops a run in which a trainable parameter has no gradient (`grad is None`) in the first two steps.

    Parameters that the adapter method declares unused may be without. Under DDP one step decides: its reduction
    waits for every gradient, and breaks down in the second.
    """

    def __init__(self, *, declared_unused: Collection[str]) -> None:
        self.declared_unused = frozenset(declared_unused)
        self._missing: set[str] | None = None
        self._steps = 0

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look for parameters without a gradient while it is early."""
        steps = 1 if isinstance(trainer.strategy, DDPStrategy) else 2
        if self._steps == steps:
            return
        self._steps += 1
        model: nn.Module = pl_module.get_submodule("model")
        missing = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
        self._missing = missing if self._missing is None else self._missing & missing
        unexplained = sorted(self._missing - self.declared_unused)
        if self._steps == steps and unexplained:
            shown = shorten(unexplained, 5)
            after = "one step" if steps == 1 else "two steps"
            raise TrainingError(
                f"no gradient after {after}: {shown}. The task runs without what is named; freeze it, or let the "
                "adapter method declare it unused"
            )


def _not_finite_anywhere(gradients: Sequence[Tensor]) -> Tensor:
    """`_not_finite` of gradients, where these are sharded of the parts of all processes: so they decide alike."""
    parts = [own_part(gradient) for gradient in gradients]
    flags = _not_finite(parts)
    if any(part is not gradient for part, gradient in zip(parts, gradients, strict=True)):
        counts = flags.int()
        distributed.all_reduce(counts)
        flags = counts > 0
    return flags


def _not_finite(tensors: Sequence[Tensor]) -> Tensor:
    """One flag (bool) a tensor, on its device: True where any element is NaN or infinite."""
    tensors = [tensor if tensor.numel() else tensor.new_zeros(1) for tensor in tensors]
    # The largest magnitude of a tensor with a NaN is NaN; one fused kernel instead of one a tensor.
    return ~torch.stack(torch._foreach_norm(tensors, float("inf"))).isfinite()


def _samples_of(every: Sequence[tuple[list[bool], list[Sequence[str]]]]) -> tuple[list[str], list[str]]:
    """The samples of the losses that are not finite, and of all losses, of what each process knows of its own."""
    losses = [pair for flags, samples in every for pair in zip(flags, samples, strict=True)]
    poisoned = [sample for bad, samples in losses for sample in samples if bad]
    return poisoned, [sample for _, samples in losses for sample in samples]

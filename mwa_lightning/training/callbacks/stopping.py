"""How a run ends at a signal: between two steps, all ranks at the same one, and back into SLURM's queue."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, distributed

from mwa_lightning.errors import Interrupted, MachineLost, Stopped, TrainingError, UserError
from mwa_lightning.system import slurm
from mwa_lightning.system.signals import Signals
from mwa_lightning.training.distributed.processes import Processes, is_lost
from mwa_lightning.training.runs.run_directory import RunDirectory

log = logging.getLogger(__name__)

# How long the other ranks wait for the first to have left, and it for them to have heard so, in seconds.
_PATIENCE, _PARTING = 120.0, 5.0
# How long it needs to end then.
_COURTESY = 1.0
# How long srun may take to tell the ranks that one of them has failed, in seconds: processes that read data hold up the
# end of a killed one for five.
_SRUN = 15.0

_FUTILE = (
    "the notice came before a step was made, as it would again, so the job was not requeued: raise --time or lower "
    "--signal (launcher.timeout_min, launcher.signal_delay_s)"
)
_AT_INTERRUPT = "mwa-train: Ctrl-C: ends after this step, or after validation, and saves; once more ends it at once\n"


class StopAgreement(pl.Callback):
    """Has all ranks stop at one place because any of them was told to: `RunKeeper` saves there, evaluations are left.

    After each batch the ranks exchange one number on the CPU (gloo, whatever the devices use), and look at it a
    batch later: nothing waits for it, no device is synchronised, and all of them see it at the same step.
    """

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self.agreed = False
        self.stepped = False  # whether this process, not an earlier start of the run, has made a step
        self.close: Callable[[int], None] | None = None  # closes what is open, for a run that ends by an exit code
        self._ranks: Any = None
        self._pending: tuple[Any, Tensor] | None = None
        self._step = 0

    def due(self, trainer: pl.Trainer) -> bool:
        """Whether to end now: it is agreed, and the batch that was just used has completed an optimizer step."""
        return self.agreed and trainer.global_step > self._step

    def stop(self, trainer: pl.Trainer) -> None:
        """End the run, which was just saved. Raises Stopped."""
        message = f"{self.name} after step {trainer.global_step}, which is saved"
        log.info("stopped by %s", message)
        raise Stopped(message)

    def check(self, processes: Processes) -> None:
        """Between parts of the set-up: raise Stopped, on all ranks if they have met.

        Before, only the first does, which starts the others and ends them.
        """
        told = self.signals.noted if processes.first else None
        if distributed.is_initialized():
            self._connect()
            every: list[Any] = [None] * processes.count
            distributed.all_gather_object(every, self.signals.noted, group=self._ranks)
            told = next((each for each in every if each is not None), None)
        if told is not None:
            raise Stopped(f"{told.name} before the first step")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the ranks' own line; from now on there is something to save, also at Ctrl-C."""
        self._connect()
        self.signals.at_interrupt = _AT_INTERRUPT if trainer.is_global_zero else ""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.at_interrupt = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the step that this batch belongs to."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read what was exchanged after the batch before, and ask anew."""
        self.stepped = self.stepped or trainer.global_step > self._step
        self._exchange()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask at once: the run is saved here in any case, and validation may have taken long."""
        self._receive()
        self._send()
        self._receive()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the ranks' own line."""
        self._connect()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave an evaluation, which leaves nothing half-done; all ranks have as many batches. Raises Stopped."""
        self._exchange()
        if self.agreed:
            raise Stopped(f"{self.name} during the evaluation, which is to be made again")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave nothing on its way that a process which ends would miss."""
        self._receive()

    @property
    def name(self) -> str:
        return "another rank's signal" if self.signals.noted is None else self.signals.noted.name

    def part(self, *, first: bool, came: int) -> None:
        """Have the first rank leave before the others: srun and torchrun cut its work off as soon as one has left.

        It says when its work is done. Where it cannot say so any more, a signal ends the wait, of those that are sent
        when it has left or the job is requeued; all that came before is known by their number.
        """
        parting = None
        if self._ranks is not None:
            parting = distributed.broadcast(torch.zeros(1), src=0, group=self._ranks, async_op=True)
        elif first:
            return
        end = time.monotonic() + (_PARTING if first else _PATIENCE)
        while time.monotonic() < end and (first or self.signals.count == came):
            if parting is not None and parting.is_completed():
                time.sleep(0.0 if first else _COURTESY)
                return
            time.sleep(0.1)

    def _connect(self) -> None:
        if self._ranks is None and distributed.is_initialized() and distributed.get_world_size() > 1:
            self._ranks = distributed.new_group(backend="gloo")

    def _exchange(self) -> None:
        """Read what was sent after the batch before, and send anew; one process alone reads at once."""
        self._receive()
        if not self.agreed:
            self._send()
        if self._ranks is None:
            self._receive()

    def _send(self) -> None:
        told = torch.tensor(int(self.signals.noted is not None))
        work = None
        if self._ranks is not None:
            work = distributed.all_reduce(told, op=distributed.ReduceOp.MAX, group=self._ranks, async_op=True)
        self._pending = (work, told)

    def _receive(self) -> None:
        if self._pending is None:
            return
        (work, told), self._pending = self._pending, None
        if work is not None:
            work.wait()
        self.agreed = self.agreed or bool(told)


@contextmanager
def stopping(config: DictConfig, stop: StopAgreement, processes: Processes, run: RunDirectory) -> Iterator[None]:
    """Say how a run goes on that a signal has ended, and under SLURM put its job back into the queue.

    Raises Stopped, at Ctrl-C Interrupted, also where a process finds the others gone that had the same signal, or that
    are gone with their machine; TrainingError if a restart would come no further. Whatever else ends the run, the
    loggers are closed.
    """
    signals = stop.signals
    try:
        yield
    except (Exception, Interrupted) as error:
        signals.at_interrupt = None
        keyboard = signals.noted == signal.SIGINT
        stopped = error if isinstance(error, Stopped) else _left_alone(error, signals, processes)
        if signals.interrupted:  # whatever a library has made of it
            why = "interrupted"
        elif stopped is not None:
            why = f"stopped by {stopped}"
        else:
            _close(stop, error.exit_code if isinstance(error, UserError) else 1)
            raise
        came = signals.count
        acts = processes.first or isinstance(stopped, MachineLost)
        futile = acts and _is_futile(config, stop)
        said = _FUTILE if futile else _what_next(config, run, requeue=not keyboard) if acts else ""
        # Only now: with a slow server this may take longer than the notice that SLURM gives.
        _close(stop, Interrupted.exit_code if keyboard else Stopped.exit_code)
        if isinstance(error, Stopped):
            stop.part(first=processes.first, came=came)
        ended: type[BaseException] = Interrupted if keyboard or stopped is None else type(stopped)
        raise (TrainingError if futile else ended)(f"{why}; {said}") from error


def _left_alone(error: BaseException, signals: Signals, processes: Processes) -> Stopped | None:
    """Why a rank that lost the others stops and the run goes on; None if one of them failed, or none is gone.

    Where a rank has failed or was killed, srun sends SIGTERM to those that are left. It cannot know of what has
    ended together with the machine that it was on.
    """
    if processes.count == 1 or not is_lost(error):
        return None
    task = slurm.step()
    if task is not None:
        # One after the other, so that the first who is left acts for all: then SLURM ends the rest.
        end = time.monotonic() + _SRUN * (1 + task.node) + task.local_rank
        while signals.noted is None:
            if time.monotonic() > end:
                return MachineLost("the loss of another machine")
            time.sleep(0.1)
        if signals.noted == signal.SIGTERM and not slurm.makes_room():
            return None
    return None if signals.noted is None else Stopped(f"{signals.noted.name}, as the other ranks were")


def _is_futile(config: DictConfig, stop: StopAgreement) -> bool:
    """Whether the job would be put back for ever: restarted, it was told that its time is over before it made a step.

    One that makes room for another may have better luck.
    """
    told = stop.signals.noted == signal.Signals[f"SIG{config.training.requeue_signal}"]
    if not (told and config.training.requeue and slurm.batch_job() is not None and slurm.restarted()):
        return False
    return not stop.stepped and not slurm.makes_room()


def _what_next(config: DictConfig, run: RunDirectory, *, requeue: bool) -> str:
    go_on = f"resume with run_dir={run.path}" if run.config.is_file() else "nothing was written yet, start again"
    if not (requeue and config.training.requeue and slurm.batch_job() is not None):
        return go_on
    said = slurm.requeue(go_on)
    log.info("%s", said)
    return said


def _close(stop: StopAgreement, exit_code: int) -> None:
    """Close the loggers; whatever goes wrong there, the run is saved and its job requeued."""
    if stop.close is not None:
        try:
            stop.close(exit_code)
        except Exception as error:
            log.warning("a logger did not close: %s", error)

"""Silence for what Lightning says to developers, so that the tables of a run can be read."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Beginnings of warnings that are not for the user, with the reason.
NOT_FOR_THE_USER = (
    # Frozen modules are in eval mode on purpose.
    r"Found \d+ module\(s\) in eval mode",
    # The number of workers is the user's choice, and small data sets are best without.
    r"The '\w+' does not have many workers",
    # Our sampler goes on in mid-epoch; Lightning only looks at the loader.
    r"You're resuming from a checkpoint that ended before the epoch ended",
    # A short epoch logs at its end all the same.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # Evaluation reads from the run directory, where there are checkpoints on purpose.
    r"Checkpoint directory .* exists and is not empty",
    # Runs are started as they are, or by torchrun; a machine with SLURM makes no difference.
    r"The `srun` command is available on your system but is not used",
    # A GPU that is left alone was left alone by `trainer=cpu`.
    r"GPU available but not used",
    # Every rank has the whole figure: the metric gathers.
    r"It is recommended to use `self.log\(.*sync_dist=True\)`",
    # One process needs no srun; several are checked by us.
    r"The `srun` command is available",
    # Lightning's own use of a deprecated name of torch.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # The schedule is stepped after each optimizer step; a step that the gradient scaler skips looks like
    # none.
    r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's information (tips, devices, limits reached) and the warnings above away."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        for beginning in NOT_FOR_THE_USER:
            warnings.filterwarnings("ignore", message=f".*{beginning}")
        for name in names:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)

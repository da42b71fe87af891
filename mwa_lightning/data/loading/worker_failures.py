"""A process of the data loader that was killed: what torch says of it, in one line for people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mwa_lightning.errors import DataError

_BEGINNING = "DataLoader worker"


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Turn torch's RuntimeError of a loader's worker that died into a DataError.

    Torch raises it in a signal handler, so it can come up anywhere, in a step or while a file is written, and a library
    that it interrupts may make another error of it.
    """
    try:
        yield
    except Exception as error:
        said = [str(each) for each in _chain(error)]
        if not any(each.startswith(_BEGINNING) for each in said):
            raise
        signal = re.search(r"by signal: ([\w ]+)", " ".join(said))
        how = f"was ended by a signal ({signal[1]})" if signal else "ended unexpectedly"
        want = "shared memory (/dev/shm)" if "shared memory" in " ".join(said) else "memory"
        raise DataError(
            f"a process that reads data {how}, most often for want of {want}: lower data.num_workers and start "
            "again; a training run resumes from its last checkpoint with its run_dir="
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised from or in handling of which it came up."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""`python -m mwa_lightning.training.worker PID`: a further process of a run, started by the first, which has this PID.

It reads the whole configuration of a training run or an evaluation, composed and checked by the first process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback

from omegaconf import DictConfig, OmegaConf

from mwa_lightning.errors import Interrupted, Stopped, UserError
from mwa_lightning.report.terminal import complain, open_streams
from mwa_lightning.system.memory import out_of_memory
from mwa_lightning.system.signals import listening

# The first process ends its workers as soon as it fails itself: what all of them meet is said once, by it.
_COURTESY = 1.0


def main() -> int:
    """Do this process's share of the run and return its exit code."""
    rank = int(os.environ["LOCAL_RANK"])
    threading.Thread(target=end_with, args=(int(sys.argv[1]), rank), daemon=True).start()
    try:
        config = OmegaConf.create(sys.stdin.buffer.read().decode())
        assert isinstance(config, DictConfig)
        with listening(config.training.requeue_signal) as signals:
            if "expect" in config:  # a key of evaluations only
                from mwa_lightning.training.evaluate import evaluate

                evaluate(config, signals)
            else:
                from mwa_lightning.training.fit import fit

                fit(config, signals)
    except Interrupted as error:
        return error.exit_code  # the first process was, too, and says so
    except Exception as error:
        return report(error, rank=rank)
    return 0


def end_with(first: int, rank: int) -> None:
    """End this process with the first, should that be killed: on GPUs, where nobody tells, one waits for minutes."""
    while os.getppid() == first:
        time.sleep(_COURTESY / 4)  # before `report` has something to say of a lost connection
    complain(f"rank {rank}: error: the first process of the run was killed")
    os._exit(1)


def report(error: Exception, *, rank: int) -> int:
    """Say what failed in a process that is not the first, after what the first has to say; returns the exit code."""
    if isinstance(error, Stopped):
        return error.exit_code  # all of them were, and the first says so
    error = out_of_memory(error) or error
    said = traceback.format_exc()
    if isinstance(error, UserError):
        said = f"error: {' '.join(str(error).split())}"
    time.sleep(_COURTESY)
    complain("\n".join(f"rank {rank}: {line}" for line in said.splitlines()))
    return error.exit_code if isinstance(error, UserError) else 1


if __name__ == "__main__":
    open_streams()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # What is left of a failed run (loaders, connections to processes that wait) must not hold the others up.
    os._exit(code)

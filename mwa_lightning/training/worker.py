"""`python -m mwa_lightning.training.worker CONFIG`: a further process of a run, started by the first.

CONFIG is the whole configuration of a training run or an evaluation, composed and checked by the first process.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from mwa_lightning.errors import UserError

# The first process ends its workers as soon as it fails itself: what all of them meet is said once, by it.
_COURTESY = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Do this process's share of the run and return its exit code."""
    (path,) = sys.argv[1:] if argv is None else argv
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    who = f"rank {os.environ['LOCAL_RANK']}"
    try:
        if "expect" in config:  # a key of evaluations only
            from mwa_lightning.training.evaluate import evaluate

            evaluate(config)
        else:
            from mwa_lightning.training.fit import fit

            fit(config)
    except UserError as error:
        time.sleep(_COURTESY)
        print(f"{who}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except Exception:
        said = "".join(f"{who}: {line}\n" for line in traceback.format_exc().splitlines())
        time.sleep(_COURTESY)
        print(said, file=sys.stderr, end="")
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # What is left of a failed run (loaders, connections to processes that wait) must not hold the others up.
    os._exit(code)

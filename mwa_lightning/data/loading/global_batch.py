"""The global batch of a run that goes on, by as many processes as before or by another number."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mwa_lightning.errors import ConfigError, counted

logger = logging.getLogger(__name__)


def kept_global_batch(saved: Mapping[str, Any], *, batch_size: int, processes: int) -> int:
    """The samples of a batch of all processes together, as they were when the state was saved.

    Args:
        saved: State of a data module: what its `data.batch_size` was, of how many processes, and the sampler's.
        batch_size: What `data.batch_size` is now.
        processes: How many processes there are now.

    Raises:
        ConfigError: `data.batch_size` was set to something that does not come to that batch, or there are more
            processes than samples.
    """
    kept, before = int(saved["sampler"]["batch_size"]), int(saved["processes"])
    if kept < processes:
        raise ConfigError(f"the run has a global batch of {kept}: go on with at most {_count(kept)}, not {processes}")
    if batch_size not in (saved["batch_size"], kept / processes):
        other = f"set data.batch_size={kept // processes}, or " if kept % processes == 0 else ""
        raise ConfigError(
            f"data.batch_size={batch_size} on {_count(processes)} makes a global batch of {batch_size * processes}, "
            f"the run has one of {kept}: {other}leave data.batch_size={saved['batch_size']} as it was, which keeps the "
            "global batch on any number of processes"
        )
    if processes != before:
        least, rest = divmod(kept, processes)
        each = f"{least} or {least + 1}" if rest else f"{least}"
        logger.info(
            "%s now, %d before: the global batch stays %d, so that each has %s of its samples; random numbers of the "
            "model, such as dropout's, and what is chosen among a process's own samples differ from here on",
            _count(processes),
            before,
            kept,
            each,
        )
    return kept


def _count(processes: int) -> str:
    return counted(processes, "process", "processes")

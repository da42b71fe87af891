"""What a run says on the terminal: short lines and tables; the log file gets the same as plain text."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from mwa_lightning.report.tables import plain
from mwa_lightning.report.terminal import say

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

# `extra` of what the log file must have, to tell where a run was when it was killed, and a terminal can do without.
FILE_ONLY = {"file_only": True}


class ConsoleHandler(logging.Handler):
    """Prints messages as they are, warnings with the word before; leaves out records with `file_only`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record to the standard output of this moment, which a progress bar may have taken over."""
        if not getattr(record, "file_only", False):
            label = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            say(f"{label}{record.getMessage()}")


@contextmanager
def console(*, rank: int = 0) -> Iterator[None]:
    """Print what the package logs from information upwards; of several processes the first speaks for all."""
    logger = logging.getLogger("mwa_lightning")
    handler = logging.NullHandler() if rank else ConsoleHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@rank_zero_only
def show(table: Table) -> None:
    """Print a table, and log it as plain text."""
    terminal = Console()
    with terminal.capture() as capture:
        terminal.print(table)
    say(capture.get(), end="")
    log.info("\n%s", plain(table), extra=FILE_ONLY)

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
    """Prints messages as they are, warnings with the word before; leaves out records with `file_only`.

    Of several processes the first prints all of its messages. The others, which have the same to say, print only
    warnings about the data, of which each reads its own part.
    """

    def __init__(self, *, rank: int = 0) -> None:
        super().__init__()
        self.rank = rank

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record to the standard output of this moment, which a progress bar may have taken over."""
        if getattr(record, "file_only", False):
            return
        warning = record.levelno >= logging.WARNING
        if self.rank and not (warning and record.name.startswith("mwa_lightning.data.")):
            return
        label = f"{record.levelname.lower()}: " if warning else ""
        label = f"rank {self.rank}: {label}" if self.rank else label
        say(f"{label}{record.getMessage()}")


@contextmanager
def console(*, rank: int = 0) -> Iterator[None]:
    """Print what the package logs from information upwards, as the process of that rank."""
    logger = logging.getLogger("mwa_lightning")
    handler, level = ConsoleHandler(rank=rank), logger.level
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

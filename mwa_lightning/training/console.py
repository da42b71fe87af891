"""What a run says on the terminal: short lines and tables; the log file gets the same as plain text."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from mwa_lightning.report.tables import plain

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Prints messages as they are, warnings with the word before; leaves out records with `file_only`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record to the standard output of this moment, which a progress bar may have taken over."""
        if not getattr(record, "file_only", False):
            label = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
            print(f"{label}{record.getMessage()}", flush=True)


@contextmanager
def console() -> Iterator[None]:
    """Print what the package logs from information upwards."""
    logger = logging.getLogger("mwa_lightning")
    handler, level = ConsoleHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def show(table: Table) -> None:
    """Print a table, and log it as plain text."""
    Console().print(table)
    log.info("\n%s", plain(table), extra={"file_only": True})

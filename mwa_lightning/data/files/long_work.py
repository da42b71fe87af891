"""Long work on many files: the threads that read them, and whoever follows how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from mwa_lightning.errors import DataError, counted


class Follow(Protocol):
    """Shows how far a work is: what the context gives is called after each of its parts, and may end the work."""

    def __call__(self, what: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """Begin a work of so many parts."""


@contextmanager
def unseen(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Nobody follows."""
    yield lambda: None


@contextmanager
def reading_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that read; what they have not begun at the end is left.

    A signal must not raise anything meanwhile: where it comes between the two halves of taking a lock, nobody lets go
    of that any more.
    """
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        raise DataError(
            f"the {counted(count, 'thread')} to read files cannot be started: allow this process more memory (ulimit "
            "-v) or more threads (ulimit -u)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)

"""Memory that does not suffice: what Python, torch and the system say of it, as one line for a person."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from mwa_lightning.errors import OutOfMemory, UserError

# What errors without a type of their own say: torch's allocators, C++, threads, libraries that do not load.
_SAID = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|std::bad_alloc|"
    r"can't start new thread|failed to map segment|could not create a memory object",
    re.IGNORECASE,
)
_WANTED = re.compile(r"tried to allocate ([\d.,]+ \w+)", re.IGNORECASE)


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """The error to show in place of one that came of too little memory; None for any other, and for a UserError."""
    if isinstance(error, UserError):
        return None
    for each in _causes(error):
        said = str(each)
        if isinstance(each, MemoryError) or getattr(each, "errno", None) == errno.ENOMEM or _is_said(each, said):
            wanted = _WANTED.search(said)
            return OutOfMemory(gpu="CUDA" in said, wanted=wanted[1] if wanted else None)
    return None


def _is_said(error: BaseException, said: str) -> bool:
    return isinstance(error, RuntimeError | ImportError) and _SAID.search(said) is not None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__

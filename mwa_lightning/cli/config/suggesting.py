"""The nearest of the names that exist, for messages about one that does not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from itertools import islice
from pathlib import Path

_CLOSE_ENOUGH = 0.6
_MOST_NAMES = 2000  # of a folder that are looked at


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate most like `name`, or None where none is like it.

    A dotted key is compared as a whole and by its last part alone, so that `lr` finds `optim.lr`.
    """
    last = name.rpartition(".")[2]

    def likeness(candidate: str) -> float:
        whole = SequenceMatcher(None, name.lower(), candidate.lower()).ratio()
        tail = SequenceMatcher(None, last.lower(), candidate.rpartition(".")[2].lower()).ratio()
        # A tail alone says less than a whole key, and of equal tails the better whole wins.
        return max(whole, 0.9 * tail + 0.1 * whole)

    best = max(candidates, key=likeness, default=None)
    return best if best is not None and likeness(best) >= _CLOSE_ENOUGH else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return " Did you mean X?", or nothing where no candidate is near."""
    best = nearest(name, candidates)
    return f" Did you mean {best}?" if best is not None else ""


def path_meant(path: str | Path) -> str:
    """Return " Did you mean X?" of a path that exists and is like this one, which does not; else how far it exists."""
    path = Path(path)
    try:
        there = next(parent for parent in path.parents if parent.is_dir())
        missing, *rest = path.relative_to(there).parts
        with os.scandir(there) as entries:
            names = {entry.name.lower(): entry.name for entry in islice(entries, _MOST_NAMES)}
    except (OSError, StopIteration, ValueError):  # nobody may look, or a name that no file can have
        return ""
    best = get_close_matches(missing.lower(), names, n=1, cutoff=_CLOSE_ENOUGH)
    if not best:
        return f" {there} has no {missing}"
    found = there / names[best[0]]
    whole = found.joinpath(*rest)
    return f" Did you mean {whole if whole.exists() else found}?"

"""The nearest of the names that exist, for messages about one that does not."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

_CLOSE_ENOUGH = 0.6


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

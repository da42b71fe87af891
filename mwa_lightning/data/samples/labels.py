"""What labels say, in the ways in which tables write the same: 1, 1.0 and "1.0", True and "true", Yes and "yes "."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

_MISSING = ("", "nan", "<na>")  # as pandas leaves them
_WHOLE = re.compile(r"([+-]?\d{1,18})(?:\.0*)?")


def label_text(value: Any) -> str | None:
    """A label as text, a whole number without a fraction; None where it is missing or is none.

    Raises:
        ValueError: It is something else than a word or a whole number.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool | str):
        text = str(value).strip()
        return None if text.lower() in _MISSING else text
    if isinstance(value, int) and abs(value) < 10**18:
        return str(value)
    raise ValueError


class Classes:
    """The classes of a data set; a label finds its own by its text, whatever its case.

    Args:
        names: What labels may say, in the order in which they are numbered.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._exact = set(self.names)
        self._folded = {_folded(name): name for name in reversed(self.names)}

    def of(self, label: str) -> str:
        """The class of a label; the label itself where it is of none."""
        return label if label in self._exact else self._folded.get(_folded(label), label)


def classes_of(labels: Iterable[str]) -> Classes:
    """The classes of all labels that occur, sorted, by value where all are whole numbers."""
    spellings: dict[str, str] = {}
    for label in labels:
        spellings.setdefault(_folded(label), label)
    if all(map(_WHOLE.fullmatch, spellings)):
        return Classes(sorted(spellings, key=int))
    return Classes(sorted(spellings.values()))


def _folded(label: str) -> str:
    whole = _WHOLE.fullmatch(label)
    return str(int(whole[1])) if whole else label.casefold()

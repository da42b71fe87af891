"""Where readers of annotations report what is wrong: raised at once in a run, collected in an inspection."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import NamedTuple

from mwa_lightning.errors import DataError

_WORDLESS = frozenset("PZC")  # punctuation, separators, control characters


class Problem(NamedTuple):
    """One thing that is wrong: its kind, for counting, and the line for people."""

    kind: str
    message: str


@dataclass
class Problems:
    """Takes problems as they are found.

    Args:
        collect: Keep them in `found`; otherwise the first is raised as a DataError.
    """

    collect: bool = False
    found: list[Problem] = field(default_factory=list)

    def add(self, kind: str, message: str) -> None:
        """Report one problem.

        Raises:
            DataError: This is a run, not an inspection.
        """
        if not self.collect:
            raise DataError(message)
        self.found.append(Problem(kind, message))


def has_words(text: str) -> bool:
    """Whether a caption holds more than blanks, control characters and punctuation."""
    return any(unicodedata.category(character)[0] not in _WORDLESS for character in text)

"""Where readers of annotations report what is wrong: raised at once in a run, collected in an inspection."""

from __future__ import annotations

import logging
import unicodedata
from dataclasses import dataclass, field
from typing import NamedTuple

from mwa_lightning.errors import DataError

logger = logging.getLogger(__name__)

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
        found: The problems so far.
        notes: What is no problem but should be known, so far; in a run it is logged at once as well.
        read_as: What the files were taken for, so far: format, encoding, columns; in a run only debugging shows it.
    """

    collect: bool = False
    found: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read_as: list[str] = field(default_factory=list)

    def add(self, kind: str, message: str) -> None:
        """Report one problem.

        Raises:
            DataError: This is a run, not an inspection.
        """
        if not self.collect:
            raise DataError(message)
        self.found.append(Problem(kind, message))

    def bad_row(self, kind: str, message: str) -> None:
        """Report a row that cannot be used, of a table whose other rows can.

        Raises:
            DataError: This is a run, not an inspection.
        """
        self.add(kind, message)

    def took(self, message: str) -> None:
        """Report what a file was taken for, so that a person sees whether that is right."""
        logger.info("%s", message)
        self.read_as.append(message)

    def note(self, message: str) -> None:
        """Report what a run copes with."""
        if not self.collect:
            logger.warning("%s", message)
        self.notes.append(message)


def has_words(text: str) -> bool:
    """Whether a caption holds more than blanks, control characters and punctuation."""
    return any(unicodedata.category(character)[0] not in _WORDLESS for character in text)

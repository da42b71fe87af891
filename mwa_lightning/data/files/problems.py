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
        skip_rows: How many rows of train that cannot be used are left out; None = none, and the user cannot ask for it.
        skip_in_evaluation: Leave such rows out of evaluation too, and where nothing tells which split they are of.
        skipped: What is wrong with those that were left out, so far.
        split: The split that all rows of the table which is being read belong to, if there is one.
    """

    collect: bool = False
    found: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read_as: list[str] = field(default_factory=list)
    skip_rows: int | None = None
    skip_in_evaluation: bool = False
    skipped: list[str] = field(default_factory=list)
    split: str | None = None

    def add(self, kind: str, message: str) -> None:
        """Report one problem.

        Raises:
            DataError: This is a run, not an inspection.
        """
        if not self.collect:
            raise DataError(message)
        self.found.append(Problem(kind, message))

    def bad_row(self, kind: str, message: str, *, split: str | None = None) -> None:
        """Report a row that cannot be used, of a table whose other rows can; it is left out if the user said so.

        Args:
            kind: What is wrong.
            message: The line for people.
            split: The split of the row; None = that of the table which is being read, where it has one.

        Raises:
            DataError: This is a run, and the row may not be left out.
        """
        split = split or self.split
        allowed = split == "train" or self.skip_in_evaluation
        if allowed and len(self.skipped) < (self.skip_rows or 0):
            self.skipped.append(message)
            return
        if not self.collect and self.skip_rows is not None:
            more = "" if split == "train" else " data.skip_bad_rows_in_eval=true"
            way = f"data.skip_bad_rows=N{more} leaves out up to N such rows"
            if allowed and self.skip_rows:
                way = f"there are more such rows than data.skip_bad_rows={self.skip_rows} leaves out"
            message = f"{message}; {way}"
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

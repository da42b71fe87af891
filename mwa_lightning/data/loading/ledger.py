"""What of the data was not used as it is: told by workers, entered here, the same for all processes of a run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mwa_lightning.data.storage.availability import Storage
from mwa_lightning.data.text.tokenizers import Tokenizer
from mwa_lightning.errors import DataError

logger = logging.getLogger(__name__)


class BadImage(NamedTuple):
    """An image that cannot be read: its path, and the line for people."""

    path: str
    message: str


class Outcome(NamedTuple):
    """What a worker hands over: a batch or an error, images it could not read, how many texts it cut."""

    batch: Any
    error: str | None = None
    bad_images: tuple[BadImage, ...] = ()
    truncated: int = 0


class News(NamedTuple):
    """What one process has entered in its ledger: images by path with the reason, cut texts by split."""

    bad_images: dict[str, str]
    truncated: Counter[str]


@dataclass(kw_only=True)
class Ledger:
    """Keeps count, over a whole run, of what was not used as it is; what other processes have found comes by `merge`.

    Args:
        max_bad_images: How many images may be unreadable.
        tokenizer: Whose count of cut texts is kept.
        storage: Where the data lies; None where that cannot go.
        bad_images: Path and reason of each that was replaced.
        truncated: How many texts of each split were cut, those of every epoch counted.
        news: What this process has entered since the last `merge`.
    """

    max_bad_images: int
    tokenizer: Tokenizer
    storage: Storage | None = None
    bad_images: dict[str, str] = field(default_factory=dict)
    truncated: Counter[str] = field(default_factory=Counter)
    news: News = field(default_factory=lambda: News({}, Counter()))

    def note(self, outcome: Outcome, *, split: str) -> None:
        """Enter what a worker reports.

        Raises:
            DataError: There is no batch, more images are unreadable than may be, or the disk that they lie on is gone.
        """
        if self.storage is not None and (outcome.bad_images or outcome.error) and (gone := self.storage.problem()):
            raise DataError(gone)
        new, truncated = dict(outcome.bad_images), Counter({split: outcome.truncated})
        self.news.bad_images.update(new)
        self.news.truncated.update(truncated)
        self.tokenizer.truncated += outcome.truncated
        self._enter(new, truncated, error=outcome.error)

    def merge(self, every: Sequence[News]) -> None:
        """Enter the news of all processes, which all of them do together.

        Raises:
            DataError: Of all together more images are unreadable than may be.
        """
        truncated = sum((news.truncated for news in every), Counter[str]())
        truncated.subtract(self.news.truncated)
        self.news = News({}, Counter())
        self._enter({path: why for news in every for path, why in news.bad_images.items()}, truncated)

    def _enter(self, bad_images: Mapping[str, str], truncated: Mapping[str, int], *, error: str | None = None) -> None:
        new = {path: message for path, message in bad_images.items() if path not in self.bad_images}
        self.bad_images.update(new)
        count = len(self.bad_images)
        if count > self.max_bad_images:
            message = next(iter(new.values()), error)
            raise DataError(
                f"{message} ({count} unreadable, data.max_bad_images={self.max_bad_images}: "
                "mwa-prepare check=true lists all)"
            )
        for place, message in enumerate(new.values(), start=count - len(new) + 1):
            logger.warning("replaced by the next sample: %s (%d so far)", message, place)
        if error is not None:
            raise DataError(error)
        for split, texts in truncated.items():
            if texts and not self.truncated[split]:
                logger.warning("split %s: texts of more than %s", split, self.tokenizer.limit)
            self.truncated[split] += texts

    def sum_up(self) -> None:
        """Log how many texts were cut, if any were."""
        counts = [f"{count:,} of {split}" for split, count in self.truncated.items() if count]
        if counts:
            logger.info("truncated texts, counted anew in every epoch: %s", ", ".join(counts))

"""What every tokenizer is, and that of BEiT-3; the others are in `subwords`."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mwa_lightning.data.text.cleaning import Cleaned, TextCleaning
from mwa_lightning.data.text.sentencepieces import SentencePieces
from mwa_lightning.errors import CheckpointError, ConfigError, DataError

BEGIN, PAD, END, UNKNOWN = 0, 1, 2, 3  # of BEiT-3

_SPARE_ROWS = 64  # a table may be rounded up by less than this; the official one has 8 rows to spare

logger = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """Token ids int64 (b, n), mask (b, n) True on real tokens, and how many of the texts were cut."""

    ids: Tensor
    mask: Tensor
    truncated: int


class Tokenizer(ABC):
    """Turns texts into padded ids: `begin`, the pieces of the text, `end`. Can be sent to worker processes.

    Too long texts are truncated. A subclass says what the pieces are and how many ids there can be.

    Args:
        path: Where it was read from, for messages.
        max_length: Largest number of tokens, `begin` and `end` included.
        fixed_length: Pad every text to `max_length` rather than to the longest of the batch, and call all tokens real:
            for models that attend to their padding.
        begin: Ids before the pieces.
        end: Ids after the pieces.
        pad: Id of the padding.
        cleaning: What is done to a text first; None for nothing.

    Raises:
        ConfigError: There is no room for a piece.
    """

    def __init__(
        self,
        path: str | Path,
        max_length: int,
        *,
        fixed_length: bool = False,
        begin: Sequence[int],
        end: Sequence[int],
        pad: int,
        cleaning: TextCleaning | None = None,
    ) -> None:
        least = len(begin) + len(end) + 1
        if max_length < least:
            raise ConfigError(f"backbone.max_text_length={max_length}: give at least {least}, room for one piece")
        self.path = str(path)
        self.max_length = max_length
        self.fixed_length = fixed_length
        self.begin = tuple(begin)
        self.end = tuple(end)
        self.pad = pad
        self.cleaning = cleaning
        self.truncated = 0

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """Rows that the embedding table must have: the largest id and one."""

    @abstractmethod
    def pieces(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, without `begin` and `end`."""

    @property
    def limit(self) -> str:
        """How long texts may be and what becomes of longer ones, to go on a message with."""
        words = None if self.cleaning is None else self.cleaning.max_words
        if words is None:
            return f"{self.max_length} tokens are truncated (backbone.max_text_length)"
        keys = "backbone.max_words, backbone.max_text_length"
        return f"{words} words or {self.max_length} tokens are truncated ({keys})"

    def check_fits(self, table_rows: int) -> None:
        """Compare with the number of rows of the backbone's embedding table.

        Raises:
            ConfigError: The table lacks rows for some ids, or has so many more that it was made for another
                file.
        """
        if not 0 <= table_rows - self.vocabulary_size < _SPARE_ROWS:
            raise ConfigError(
                f"tokenizer {self.path} needs an embedding table of {self.vocabulary_size:,} rows, the "
                f"backbone has {table_rows:,}: set backbone.tokenizer to the file that belongs to the "
                "backbone"
            )

    def __call__(self, texts: str | Iterable[str]) -> tuple[Tensor, Tensor]:
        """Ids int64 (b, n) and mask bool (b, n), padded; truncated texts are counted.

        One string is one text; b texts are a list, a tuple, an array or whatever else gives one after the other.

        Raises:
            DataError: A text has no pieces, or is none.
        """
        encoded = self.encode(texts)
        self.note_truncated(encoded.truncated)
        return encoded.ids, encoded.mask

    def encode(self, texts: str | Iterable[str]) -> Encoded:
        """As calling the tokenizer, but the number of cut texts is returned instead of noted."""
        texts = _as_list(texts)
        frame = len(self.begin) + len(self.end)
        room = self.max_length - frame
        read = [_readable(text) for text in texts]
        cleaned = [Cleaned(text, cut=False) if self.cleaning is None else self.cleaning(text) for text in read]
        rows = self.pieces([text for text, _ in cleaned]) if texts else []
        truncated = 0
        for text, (left, cut), row in zip(texts, cleaned, rows, strict=True):
            if not row or not left.strip():
                raise DataError(f"the text {text[:80]!r} has no words: write some, or leave it out")
            truncated += cut or len(row) > room
        lengths = np.array([min(len(row), room) + frame for row in rows], dtype=np.int64)
        longest = self.max_length if self.fixed_length else int(lengths.max(initial=frame))
        ids = np.full((len(rows), longest), self.pad, dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : lengths[i]] = (*self.begin, *row[:room], *self.end)
        mask = np.arange(longest) < (longest if self.fixed_length else lengths[:, None])
        mask = np.broadcast_to(mask, ids.shape).copy()
        return Encoded(ids=torch.from_numpy(ids), mask=torch.from_numpy(mask), truncated=truncated)

    def note_truncated(self, count: int) -> None:
        """Add to the number of cut texts; the first time, say so."""
        if count and not self.truncated:
            logger.warning("texts of more than %s", self.limit)
        self.truncated += count


def _as_list(texts: object) -> list[str]:
    """One text, or several, as a list. Raises DataError, in one line, for what is neither."""
    if isinstance(texts, str):
        return [texts]
    # The keys of a dict are iterable, the order of a set changes from start to start, and bytes are numbers.
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping | Set | bytes | bytearray):
        raise DataError(f"the tokenizer wants a text or a list of texts, not {_kind(texts)}")
    listed = [texts.item()] if isinstance(texts, np.ndarray) and texts.ndim == 0 else list(texts)
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            raise DataError(
                f"the tokenizer wants a text or a list of texts; number {number} of these, from 0, is {_kind(text)}"
            )
    return listed


def _kind(value: object) -> str:
    """What a value is that is no text, for a message."""
    if isinstance(value, bytes | bytearray):
        return "bytes: decode them first"
    return "None" if value is None else f"a {type(value).__name__}"


def _readable(text: str) -> str:
    """The text, with question marks for halves of surrogate pairs, which are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


class SentencePieceTokenizer(Tokenizer):
    """BEiT-3's: a sentencepiece model with the ids of XLM-RoBERTa's layout.

    `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, piece i of the file i + 1, `<mask>` after the last piece. Captions go in as
    they are, without lower-casing.

    Args:
        path: The sentencepiece model (`beit3.spm` for the official weights).
        max_length: Largest number of tokens, `<s>` and `</s>` included.
        fixed_length: See `Tokenizer`.
        cleaning: See `Tokenizer`.

    Raises:
        CheckpointError: The file is missing, or is not a sentencepiece model laid out like BEiT-3's.
    """

    def __init__(
        self,
        path: str | Path,
        max_length: int = 64,
        *,
        fixed_length: bool = False,
        cleaning: TextCleaning | None = None,
    ) -> None:
        super().__init__(
            path, max_length, fixed_length=fixed_length, begin=(BEGIN,), end=(END,), pad=PAD, cleaning=cleaning
        )
        self._pieces = SentencePieces(path)
        if self._pieces.layout != (0, 1, 2):
            raise CheckpointError(
                f"tokenizer {path} is not laid out like BEiT-3's (<unk> 0, <s> 1, </s> 2): set "
                "backbone.tokenizer to the file that belongs to the backbone"
            )

    @property
    def vocabulary_size(self) -> int:
        """Rows that the embedding table must have: the largest id is that of `<mask>`."""
        return self.mask_id + 1

    @property
    def mask_id(self) -> int:
        return len(self._pieces) + 1

    def pieces(self, texts: list[str]) -> list[list[int]]:
        """The ids of the pieces by the rule of the layout."""
        return [[piece + 1 if piece else UNKNOWN for piece in row] for row in self._pieces.encode(texts)]

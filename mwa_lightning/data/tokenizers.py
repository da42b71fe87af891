"""What every tokenizer is, and that of BEiT-3; the others are in `subwords`."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from mwa_lightning.data.text_cleaning import Cleaned, TextCleaning
from mwa_lightning.errors import CheckpointError, ConfigError, DataError
from mwa_lightning.regular_files import read_file

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

    Too long texts lose their end. A subclass says what the pieces are and how many ids there can be.

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
            return f"{self.max_length} tokens lose their end (backbone.max_text_length)"
        keys = "backbone.max_words, backbone.max_text_length"
        return f"{words} words or {self.max_length} tokens lose their end ({keys})"

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

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids int64 (b, n) and mask bool (b, n), padded; cut texts are counted.

        Raises:
            DataError: A text has no pieces.
        """
        encoded = self.encode(texts)
        self.note_truncated(encoded.truncated)
        return encoded.ids, encoded.mask

    def encode(self, texts: Sequence[str]) -> Encoded:
        """As calling the tokenizer, but the number of cut texts is returned instead of noted."""
        frame = len(self.begin) + len(self.end)
        room = self.max_length - frame
        read = [_readable(text) for text in texts]
        cleaned = [Cleaned(text, cut=False) if self.cleaning is None else self.cleaning(text) for text in read]
        rows = self.pieces([text for text, _ in cleaned]) if texts else []
        truncated = 0
        for text, (left, cut), row in zip(texts, cleaned, rows, strict=True):
            if not row or not left.strip():
                raise DataError(f"caption {text!r} has no words: write it out, or leave it out")
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
            logger.warning("captions of more than %s", self.limit)
        self.truncated += count


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
        try:
            self._proto = read_file(path)
        except FileNotFoundError:
            raise CheckpointError(
                f"tokenizer {path} is missing: set backbone.tokenizer to the sentencepiece file of the backbone"
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"tokenizer {path} cannot be read ({error.strerror}): set backbone.tokenizer to the "
                "sentencepiece file of the backbone"
            ) from None
        self._processor = self._load()

    @property
    def vocabulary_size(self) -> int:
        """Rows that the embedding table must have: the largest id is that of `<mask>`."""
        return self.mask_id + 1

    @property
    def mask_id(self) -> int:
        """Id of `<mask>`."""
        return int(self._processor.get_piece_size()) + 1

    def pieces(self, texts: list[str]) -> list[list[int]]:
        """The ids of the pieces by the rule of the layout."""
        rows: list[list[int]] = self._processor.encode(texts)
        return [[piece + 1 if piece else UNKNOWN for piece in row] for row in rows]

    def _load(self) -> SentencePieceProcessor:
        processor = SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(self._proto)
        except RuntimeError:
            raise CheckpointError(
                f"tokenizer {self.path} is not a sentencepiece model: set backbone.tokenizer to the file "
                "that belongs to the backbone"
            ) from None
        if (processor.unk_id(), processor.bos_id(), processor.eos_id()) != (0, 1, 2):
            raise CheckpointError(
                f"tokenizer {self.path} is not laid out like BEiT-3's (<unk> 0, <s> 1, </s> 2): set "
                "backbone.tokenizer to the file that belongs to the backbone"
            )
        return processor

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_processor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._processor = self._load()

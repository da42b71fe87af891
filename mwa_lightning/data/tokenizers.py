"""BEiT-3's tokenizer: a sentencepiece model with the ids of XLM-RoBERTa's layout.

`<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, piece i of the file i + 1, `<mask>` after the last piece. Captions
go in as they are, without lower-casing; too long ones lose their end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from mwa_lightning.errors import CheckpointError, ConfigError, DataError

BEGIN, PAD, END, UNKNOWN = 0, 1, 2, 3

_SPARE_ROWS = 64  # a table may be rounded up by less than this; the official one has 8 rows to spare

logger = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """Token ids int64 (b, n), mask (b, n) True on real tokens, and how many of the texts were cut."""

    ids: Tensor
    mask: Tensor
    truncated: int


class SentencePieceTokenizer:
    """Turns captions into padded ids. Can be sent to worker processes.

    Args:
        path: The sentencepiece model (`beit3.spm` for the official weights).
        max_length: Largest number of tokens, `<s>` and `</s>` included.

    Raises:
        CheckpointError: The file is missing, or is not a sentencepiece model laid out like BEiT-3's.
    """

    def __init__(self, path: str | Path, max_length: int = 64) -> None:
        if max_length < 3:
            raise ConfigError(f"backbone.max_text_length={max_length}: give at least 3, room for one piece")
        self.path = str(path)
        self.max_length = max_length
        self.truncated = 0
        try:
            self._proto = Path(path).read_bytes()
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
        """Ids int64 (b, n) and mask bool (b, n), padded to the longest; cut texts are counted.

        Raises:
            DataError: A text has no pieces.
        """
        encoded = self.encode(texts)
        self.note_truncated(encoded.truncated)
        return encoded.ids, encoded.mask

    def encode(self, texts: Sequence[str]) -> Encoded:
        """As calling the tokenizer, but the number of cut texts is returned instead of noted."""
        room = self.max_length - 2
        rows: list[list[int]] = self._pieces(list(texts))
        truncated = 0
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise DataError(f"caption {text!r} has no words: write it out, or leave it out")
            truncated += len(row) > room
        lengths = np.array([min(len(row), room) + 2 for row in rows], dtype=np.int64)
        ids = np.full((len(rows), int(lengths.max(initial=2))), PAD, dtype=np.int64)
        for i, row in enumerate(rows):
            pieces = np.array(row[:room], dtype=np.int64)
            ids[i, 0] = BEGIN
            ids[i, 1 : len(pieces) + 1] = np.where(pieces == 0, UNKNOWN, pieces + 1)
            ids[i, len(pieces) + 1] = END
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        return Encoded(ids=torch.from_numpy(ids), mask=torch.from_numpy(mask), truncated=truncated)

    def note_truncated(self, count: int) -> None:
        """Add to the number of cut texts; the first time, say so."""
        if count and not self.truncated:
            logger.warning("captions of more than %d tokens lose their end (backbone.max_text_length)", self.max_length)
        self.truncated += count

    def _pieces(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        try:
            rows: list[list[int]] = self._processor.encode(texts)
        except (TypeError, UnicodeEncodeError):  # halves of surrogate pairs, which are no text
            rows = self._processor.encode([text.encode("utf-8", "replace").decode() for text in texts])
        return rows

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

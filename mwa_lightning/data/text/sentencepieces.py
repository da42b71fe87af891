"""A sentencepiece model: the file format of the tokenizers of BEiT-3, SigLIP and Gemma."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from mwa_lightning.errors import CheckpointError
from mwa_lightning.system.regular_files import read_file


class SentencePieces:
    """The pieces of a file and their ids. Can be sent to worker processes.

    Raises CheckpointError if the file is missing or is no sentencepiece model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
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

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    @property
    def layout(self) -> tuple[int, int, int]:
        """The ids of the unknown piece, of the beginning and of the end of a sequence; -1 for none."""
        return self._processor.unk_id(), self._processor.bos_id(), self._processor.eos_id()

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, None where there is no such piece."""
        found = int(self._processor.piece_to_id(piece))
        return found if self._processor.id_to_piece(found) == piece else None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text."""
        rows: list[list[int]] = self._processor.encode(texts)
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
        return processor

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_processor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._processor = self._load()

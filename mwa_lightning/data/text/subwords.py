"""The tokenizers of CLIP, BERT (BLIP, ALBEF) and SigLIP, from the files that come with their weights."""

from __future__ import annotations

import gzip
import os
import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from mwa_lightning.data.text.cleaning import TextCleaning
from mwa_lightning.data.text.sentencepieces import SentencePieces
from mwa_lightning.data.text.tokenizer_files import (
    MERGES,
    OPENAI,
    PIPELINE,
    SENTENCEPIECE,
    VOCABULARY,
    WORDS,
    find,
    format_of,
)
from mwa_lightning.data.text.tokenizers import SentencePieceTokenizer, Tokenizer
from mwa_lightning.errors import CheckpointError, ConfigError
from mwa_lightning.system.regular_files import read_file

# Captions are short, and the workers of the loaders are parallel already; threads of the library do not survive a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_MERGES = 49_152 - 256 - 2  # that CLIP uses of OpenAI's file, which has more
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Pieces(Protocol):
    """Cuts texts into pieces, and knows their ids; can be sent to worker processes."""

    def __len__(self) -> int:
        """The largest id and one."""

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, None where there is no such piece."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, without special tokens around them."""


class Pipeline:
    """Pieces as a pipeline of the library `tokenizers` makes them."""

    def __init__(self, pipeline: tokenizers.Tokenizer) -> None:
        pipeline.no_truncation()
        pipeline.no_padding()
        self._pipeline = pipeline

    def __len__(self) -> int:
        return max(self._pipeline.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, None where there is no such piece."""
        found: int | None = self._pipeline.token_to_id(piece)
        return found

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, without special tokens around them."""
        return [encoding.ids for encoding in self._pipeline.encode_batch(texts, add_special_tokens=False)]


class SiglipPieces(SentencePieces):
    """Those of SigLIP, whose texts are lower-cased first, and without punctuation; of SigLIP 2 lower-cased alone."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, without special tokens around them."""
        if self.id_of(_OF_SIGLIP_2.end) is not None:
            lower = normalizers.Lowercase()
            return super().encode([lower.normalize_str(text) for text in texts])
        bare = (text.lower().translate(_PUNCTUATION) for text in texts)
        return super().encode([re.sub(r"\s+", " ", text).strip() for text in bare])


class Special(NamedTuple):
    """Special tokens: what stands before a text, behind it, and behind that up to the common length."""

    begin: str | None
    end: str
    pad: str

    @property
    def names(self) -> list[str]:
        """Each of them once."""
        return list(dict.fromkeys(name for name in self if name is not None))


class SubwordTokenizer(Tokenizer):
    """Pieces between special tokens: the first of these alternatives that the pieces have as a whole.

    Raises CheckpointError if they have none; `wanted` says what to give then.
    """

    def __init__(
        self,
        pieces: Pieces,
        path: str | Path,
        max_length: int,
        *,
        special: Sequence[Special],
        wanted: str,
        fixed_length: bool = False,
        cleaning: TextCleaning | None = None,
    ) -> None:
        def ids(*names: str | None) -> list[int]:
            return [token for name in names if name is not None and (token := pieces.id_of(name)) is not None]

        found = next((these for these in special if len(ids(*these.names)) == len(these.names)), None)
        if found is None:
            missing = " and no ".join(name for name in special[0].names if pieces.id_of(name) is None)
            raise CheckpointError(
                f"tokenizer {path} is that of another model, it has no {missing}: set backbone.tokenizer to the "
                f"backbone's own, {wanted}"
            )
        super().__init__(
            path,
            max_length,
            fixed_length=fixed_length,
            begin=ids(found.begin),
            end=ids(found.end),
            pad=ids(found.pad)[0],
            cleaning=cleaning,
        )
        self._pieces = pieces

    @property
    def vocabulary_size(self) -> int:
        """The largest id and one."""
        return len(self._pieces)

    def pieces(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, without special tokens around them."""
        return self._pieces.encode(texts)


class Kind(NamedTuple):
    """One kind of tokenizer.

    Attributes:
        special: Its special tokens, in alternatives.
        choices: Groups of files by their usual names, the best first.
        readers: How files are read, by the format of the first (see `format_of`).
        wanted: What to give, for messages.
    """

    special: Sequence[Special]
    choices: Sequence[tuple[str, ...]]
    readers: Mapping[str, Callable[[list[Path]], Pieces]]
    wanted: str


def make_tokenizer(
    kind: str,
    reference: str | Path,
    *,
    max_length: int,
    fixed_length: bool = False,
    cleaning: TextCleaning | None = None,
) -> Tokenizer:
    """The tokenizer of a kind (`sentencepiece`, `clip`, `bert` or `siglip`) from a file, a folder or the hub.

    Raises ConfigError if there is no such kind, CheckpointError if its files are missing, damaged or of another kind.
    """
    if kind == "sentencepiece":
        path = find(reference, [("beit3.spm",), ("sentencepiece.bpe.model",)], "beit3.spm or its folder")[0]
        if format_of(path) != SENTENCEPIECE:
            raise CheckpointError(
                f"tokenizer {path} is not a sentencepiece model: set backbone.tokenizer to the file that belongs to "
                "the backbone"
            )
        return SentencePieceTokenizer(path, max_length, fixed_length=fixed_length, cleaning=cleaning)
    if kind not in KINDS:
        raise ConfigError(f"backbone.tokenizer_kind={kind}: choose one of sentencepiece, {', '.join(KINDS)}")
    form = KINDS[kind]
    return SubwordTokenizer(
        _read(find(reference, form.choices, form.wanted), form),
        reference,
        max_length,
        special=form.special,
        wanted=form.wanted,
        fixed_length=fixed_length,
        cleaning=cleaning,
    )


def _read(paths: list[Path], form: Kind) -> Pieces:
    """The pieces of files. Raises CheckpointError if these are of another kind, or damaged."""
    written = format_of(paths[0])
    if written not in form.readers:
        raise CheckpointError(
            f"tokenizer {paths[0]} has the format of {written}, in which this kind does not come: set "
            f"backbone.tokenizer to {form.wanted}"
        )
    try:
        return form.readers[written](paths)
    except CheckpointError:
        raise
    # The library raises bare exceptions of many kinds for a file that it cannot make sense of.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"tokenizer {paths[0]} cannot be read ({reason}): set backbone.tokenizer to {form.wanted}"
        ) from error


def _whole(paths: list[Path]) -> tokenizers.Tokenizer:
    """A pipeline with all its parts."""
    return tokenizers.Tokenizer.from_str(read_file(paths[0]).decode("utf-8"))


def _clip_of_two_files(paths: list[Path]) -> Pipeline:
    """CLIP's from vocabulary and merges."""
    if len(paths) == 1:
        raise ValueError(f"{MERGES} belongs to it: put both into a folder, as {VOCABULARY} and {MERGES}")
    return _clip(*models.BPE.read_file(str(paths[0]), str(paths[1])))


def _clip_of_merges(paths: list[Path]) -> Pipeline:
    """CLIP's from OpenAI's file of merges, which stand in the order of their ids."""
    content = read_file(paths[0])
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    lines = content.decode("utf-8").split("\n")[1 : _CLIP_MERGES + 1]
    merges = [(first, second) for first, second in (line.split() for line in lines if line.strip())]
    # Bytes that can be printed come first, in their own order: they are the characters that stand for themselves.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), _CLIP_START, _CLIP_END]
    return _clip({name: number for number, name in enumerate(names)}, merges)


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Pipeline:
    """CLIP's lower-cased byte pairs, whose words end with `</w>`."""
    model = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=_CLIP_END)
    pipeline = tokenizers.Tokenizer(model)
    pipeline.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    _add_special(pipeline, _CLIP_START, _CLIP_END)
    return Pipeline(pipeline)


def _bert(paths: list[Path]) -> Pipeline:
    """The word pieces of BERT (uncased); what BLIP adds behind them is the backbone's business."""
    vocabulary = models.WordPiece.read_file(str(paths[0]))
    pipeline = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    pipeline.normalizer = normalizers.BertNormalizer(lowercase=True)
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _add_special(pipeline, "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
    return Pipeline(pipeline)


def _siglip(paths: list[Path]) -> Pipeline:
    """SigLIP's, with what is done to a text first: the `tokenizer.json` of SigLIP 2 is Gemma's, which does not."""
    pipeline = _whole(paths)
    before: list[normalizers.Normalizer] = [normalizers.Lowercase()]
    if pipeline.token_to_id(_OF_SIGLIP_2.end) is None:
        before += [normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""), normalizers.Replace(Regex(r"\s+"), " ")]
        before.append(normalizers.Strip())
    after = [] if pipeline.normalizer is None else [pipeline.normalizer]
    pipeline.normalizer = normalizers.Sequence([*before, *after])
    return Pipeline(pipeline)


def _add_special(pipeline: tokenizers.Tokenizer, *names: str) -> None:
    """Let special tokens be recognised in a text; none is added that the vocabulary does not have."""
    pipeline.add_special_tokens(
        [AddedToken(name, special=True) for name in names if pipeline.token_to_id(name) is not None]
    )


_OF_SIGLIP_2, _OF_SIGLIP = Special(None, "<eos>", "<pad>"), Special(None, "</s>", "</s>")
KINDS: dict[str, Kind] = {
    "clip": Kind(
        special=[Special(_CLIP_START, _CLIP_END, _CLIP_END)],
        choices=[(PIPELINE,), (VOCABULARY, MERGES), (OPENAI,)],
        readers={
            PIPELINE: lambda paths: Pipeline(_whole(paths)),
            VOCABULARY: _clip_of_two_files,
            OPENAI: _clip_of_merges,
        },
        wanted=f"a {PIPELINE} or a folder with one, or with {VOCABULARY} and {MERGES}, or OpenAI's {OPENAI}",
    ),
    "bert": Kind(
        special=[Special("[CLS]", "[SEP]", "[PAD]")],
        choices=[(PIPELINE,), (WORDS,)],
        readers={PIPELINE: lambda paths: Pipeline(_whole(paths)), WORDS: _bert},
        wanted=f"a {PIPELINE} or a {WORDS}, or a folder with one",
    ),
    "siglip": Kind(
        special=[_OF_SIGLIP_2, _OF_SIGLIP],
        choices=[("spiece.model",), (PIPELINE,), ("tokenizer.model",)],
        readers={PIPELINE: _siglip, SENTENCEPIECE: lambda paths: SiglipPieces(paths[0])},
        wanted=f"a {PIPELINE}, spiece.model (SigLIP) or tokenizer.model (SigLIP 2), or a folder with one",
    ),
}

"""The tokenizers of CLIP, BERT (BLIP, ALBEF) and SigLIP 2, from the files that come with their weights.

A reference is a file, a folder, or `hf://OWNER/NAME`: the files of that repository in the local cache of the hub, or,
where they are not in it, downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from mwa_lightning.data.text_cleaning import TextCleaning
from mwa_lightning.data.tokenizers import SentencePieceTokenizer, Tokenizer
from mwa_lightning.errors import CheckpointError, ConfigError
from mwa_lightning.hub_access import HUB, from_hub

# Captions are short, and the workers of the loaders are parallel already; threads of the library do not survive a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WHOLE = "tokenizer.json"  # the format of the library itself: everything in one file

_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class SubwordTokenizer(Tokenizer):
    """Ids as a pipeline of the `tokenizers` library gives them, between the special tokens of a kind.

    Raises CheckpointError if the pipeline has no such special tokens.
    """

    def __init__(
        self,
        pipeline: tokenizers.Tokenizer,
        path: str | Path,
        max_length: int,
        *,
        begin: str | None,
        end: str,
        pad: str,
        fixed_length: bool = False,
        cleaning: TextCleaning | None = None,
    ) -> None:
        def ids(*names: str | None) -> list[int]:
            given = [name for name in names if name is not None]
            found = [token for name in given if (token := pipeline.token_to_id(name)) is not None]
            if len(found) < len(given):
                wanted = ", ".join(dict.fromkeys(name for name in (begin, end, pad) if name is not None))
                raise CheckpointError(
                    f"tokenizer {path} lacks one of {wanted}: set backbone.tokenizer to the files that belong to the "
                    "backbone, and backbone.tokenizer_kind to their kind"
                )
            return found

        super().__init__(
            path,
            max_length,
            fixed_length=fixed_length,
            begin=ids(begin),
            end=ids(end),
            pad=ids(pad)[0],
            cleaning=cleaning,
        )
        pipeline.no_truncation()
        pipeline.no_padding()
        self._pipeline = pipeline

    @property
    def vocabulary_size(self) -> int:
        """The largest id and one."""
        return max(self._pipeline.get_vocab(with_added_tokens=True).values()) + 1

    def pieces(self, texts: list[str]) -> list[list[int]]:
        """What the pipeline makes of the texts, without its own special tokens around them."""
        return [encoding.ids for encoding in self._pipeline.encode_batch(texts, add_special_tokens=False)]


class Kind(NamedTuple):
    """One kind of tokenizer: its special tokens, the files that it can be read from, and how."""

    begin: str | None
    end: str
    pad: str
    files: tuple[str, ...]  # those of its own format, besides tokenizer.json
    read: Callable[[Path], tokenizers.Tokenizer] | None  # from a folder with these files
    finish: Callable[[tokenizers.Tokenizer], None] | None = None


def make_tokenizer(
    kind: str,
    reference: str | Path,
    *,
    max_length: int,
    fixed_length: bool = False,
    cleaning: TextCleaning | None = None,
) -> Tokenizer:
    """The tokenizer of a kind (`sentencepiece`, `clip`, `bert` or `siglip`) from a file, a folder or the hub.

    Raises ConfigError if there is no such kind, CheckpointError if its files are missing or damaged.
    """
    if kind == "sentencepiece":
        if str(reference).startswith(HUB):
            raise CheckpointError(f"tokenizer {reference}: a sentencepiece model is one file; give its path")
        return SentencePieceTokenizer(reference, max_length, fixed_length=fixed_length, cleaning=cleaning)
    if kind not in KINDS:
        raise ConfigError(f"backbone.tokenizer_kind={kind}: choose one of sentencepiece, {', '.join(KINDS)}")
    form = KINDS[kind]
    pipeline = _read(_locate(reference, form), form, reference)
    if form.finish is not None:
        form.finish(pipeline)
    return SubwordTokenizer(
        pipeline,
        reference,
        max_length,
        begin=form.begin,
        end=form.end,
        pad=form.pad,
        fixed_length=fixed_length,
        cleaning=cleaning,
    )


def _locate(reference: str | Path, form: Kind) -> Path:
    """The file or folder of a reference. Raises CheckpointError if nothing is there."""
    if str(reference).startswith(HUB):
        try:
            return from_hub(str(reference), _choices(form), instead=_wanted(form))
        except CheckpointError as error:
            raise CheckpointError(f"tokenizer {error}") from error
    path = Path(reference).expanduser()
    if not path.exists():
        raise CheckpointError(
            f"tokenizer {path} is missing: set backbone.tokenizer to {_wanted(form)}, or {HUB}OWNER/NAME"
        )
    return path


def _choices(form: Kind) -> list[tuple[str, ...]]:
    return [(WHOLE,), form.files] if form.files else [(WHOLE,)]


def _wanted(form: Kind) -> str:
    own = f", or with {' and '.join(form.files)}" if form.files else ""
    return f"a {WHOLE} or a folder with one{own}"


def _read(path: Path, form: Kind, reference: str | Path) -> tokenizers.Tokenizer:
    """The pipeline of a file or folder. Raises CheckpointError if it is none of the kind's."""
    whole = path if path.suffix == ".json" and path.name not in form.files else path / WHOLE
    # A vocabulary in a folder of its own may be named by its file.
    folder = path.parent if path.is_file() and path.name in form.files else path
    try:
        if whole.is_file():
            return tokenizers.Tokenizer.from_str(whole.read_text(encoding="utf-8"))
        if form.read is not None and all((folder / file).is_file() for file in form.files):
            return form.read(folder)
    # The library raises bare exceptions of many kinds for a file that it cannot make sense of.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"tokenizer {reference} cannot be read ({reason}); give {_wanted(form)}") from error
    raise CheckpointError(f"tokenizer {reference} is not of this kind: set backbone.tokenizer to {_wanted(form)}")


def _clip(folder: Path) -> tokenizers.Tokenizer:
    """CLIP's lower-cased byte pairs, whose words end with `</w>`."""
    model = models.BPE.from_file(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        unk_token="<|endoftext|>",
    )
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
    _add_special(pipeline, "<|startoftext|>", "<|endoftext|>")
    return pipeline


def _bert(folder: Path) -> tokenizers.Tokenizer:
    """The word pieces of BERT (uncased); what BLIP adds behind them is the backbone's business."""
    vocabulary = models.WordPiece.read_file(str(folder / "vocab.txt"))
    pipeline = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    pipeline.normalizer = normalizers.BertNormalizer(lowercase=True)
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _add_special(pipeline, "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
    return pipeline


def _add_special(pipeline: tokenizers.Tokenizer, *names: str) -> None:
    """Let special tokens be recognised in a text; none is added that the vocabulary does not have."""
    pipeline.add_special_tokens(
        [AddedToken(name, special=True) for name in names if pipeline.token_to_id(name) is not None]
    )


def _lower_case(pipeline: tokenizers.Tokenizer) -> None:
    """Lower-case first, as SigLIP 2 was trained; its `tokenizer.json` is Gemma's, which does not."""
    before = [normalizers.Lowercase()]
    pipeline.normalizer = normalizers.Sequence(
        before if pipeline.normalizer is None else [*before, pipeline.normalizer]
    )


KINDS: dict[str, Kind] = {
    "clip": Kind("<|startoftext|>", "<|endoftext|>", "<|endoftext|>", ("vocab.json", "merges.txt"), _clip),
    "bert": Kind("[CLS]", "[SEP]", "[PAD]", ("vocab.txt",), _bert),
    "siglip": Kind(None, "<eos>", "<pad>", (), None, _lower_case),
}

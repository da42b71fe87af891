"""Where the files of a tokenizer are: a file, a folder or a repository of the hub; and what a file is that is none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mwa_lightning.errors import CheckpointError
from mwa_lightning.hub_access import HUB, from_hub
from mwa_lightning.system.regular_files import open_file

PIPELINE = "tokenizer.json"  # of the library `tokenizers`: everything in one file
VOCABULARY, MERGES = "vocab.json", "merges.txt"  # CLIP's byte pairs in two files
OPENAI = "bpe_simple_vocab_16e6.txt.gz"  # CLIP's byte pairs as OpenAI and open_clip have them
WORDS = "vocab.txt"  # of BERT
SENTENCEPIECE = "a sentencepiece model"  # whatever its name

_HEAD = 4096
_JSON_VOCABULARY = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\d')
# What a file begins with that is no tokenizer, what it is, and what to do.
_OTHERS: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(start, re.DOTALL | re.IGNORECASE), what, advice)
    for start, what, advice in (
        (rb"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` in its repository"),
        (rb"(<\?xml[^>]*>|<!--.*?-->|\s)*<(!doctype html|html|head|body)", "an HTML page", "download the file itself"),
        (rb"\s*<\?xml|\s*<Error>", "an XML answer of a server", "download it again"),
        (rb'\s*\{\s*"(error|message|detail)"', "an error of a server", "download it again"),
        (rb"PK\x03\x04|\x80[\x02-\x05]|.{8}\{", "weights or an archive", "give the tokenizer beside the weights"),
        (rb"\Z", "an empty file", "download it again"),
    )
)


def find(reference: str | Path, choices: Sequence[tuple[str, ...]], wanted: str) -> list[Path]:
    """The files of a reference: those of the first choice that a folder or a repository has, or the one that is named.

    Args:
        reference: A file, a folder, or `hf://OWNER/NAME`.
        choices: Groups of files by their usual names, the best first.
        wanted: What to give, for messages.

    Raises:
        CheckpointError: There is nothing of the kind.
    """
    if str(reference).startswith(HUB):
        try:
            path = from_hub(str(reference), choices, instead=wanted)
        except CheckpointError as error:
            raise CheckpointError(f"tokenizer {error}") from error
    else:
        path = Path(reference).expanduser()
    if not path.exists():
        raise CheckpointError(f"tokenizer {path} is missing: set backbone.tokenizer to {wanted}, or {HUB}OWNER/NAME")
    if path.is_dir():
        return _in_folder(path, choices, wanted)
    for choice in choices:
        if path.name in choice and len(choice) > 1:
            beside = [path.parent / name for name in choice]
            missing = [file.name for file in beside if not file.is_file()]
            if missing:
                raise CheckpointError(
                    f"tokenizer {path} has no {' and '.join(missing)} beside it, which belongs to it: "
                    f"set backbone.tokenizer to {wanted}"
                )
            return beside
    return [path]


def format_of(path: Path) -> str:
    """How a file is written, told by its name or else by its first bytes: PIPELINE, VOCABULARY and so on.

    Raises CheckpointError, with what the file is, if it is no tokenizer.
    """
    try:
        with open_file(path) as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise CheckpointError(
            f"tokenizer {path} cannot be read ({error.strerror}): mend that, or set backbone.tokenizer to another"
        ) from error
    for start, what, advice in _OTHERS:
        if start.match(head):
            raise CheckpointError(f"tokenizer {path} is {what}, not a tokenizer: {advice}")
    if path.name in (PIPELINE, VOCABULARY, WORDS):
        return path.name
    if head.startswith(b"\x1f\x8b") or re.match(rb'"?(bpe_simple_vocab_16e6\.txt)?#version', head):
        return OPENAI
    if head.lstrip().startswith(b"{"):
        return VOCABULARY if _JSON_VOCABULARY.match(head) else PIPELINE
    if re.search(rb"^(\[PAD\]|\[UNK\]|\[CLS\])\r?$", head, re.MULTILINE):
        return WORDS
    if re.match(rb"\n[\x05-\x7f]\n", head):  # a message of protobuf whose first part is a piece
        return SENTENCEPIECE
    raise CheckpointError(
        f"tokenizer {path} is in no format of a tokenizer: give the file that belongs to the backbone"
    )


def _in_folder(folder: Path, choices: Sequence[tuple[str, ...]], wanted: str) -> list[Path]:
    for choice in choices:
        files = [folder / name for name in choice]
        if all(file.is_file() for file in files):
            return files
    there = sorted(path.name for path in folder.iterdir() if "token" in path.name or "vocab" in path.name)
    has = f"it has {', '.join(there[:4])} only" if there else "it has no file of a tokenizer"
    raise CheckpointError(f"tokenizer {folder} is a folder without a vocabulary ({has}): give {wanted}")

"""The ids are sentencepiece's by the rule of BEiT-3, and files that do not fit are refused."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest
import sentencepiece
import torch

from mwa_lightning.data.text.tokenizers import SentencePieceTokenizer
from mwa_lightning.errors import CheckpointError, ConfigError, DataError


def test_tokenizer__rule_of_the_official_ids(tokenizer: SentencePieceTokenizer, spm: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    texts = ["a red circle", "the blue star is left of a small square", "Ω star"]
    ids, mask = tokenizer(texts)
    assert ids.dtype is torch.int64
    assert mask.dtype is torch.bool
    longest = 0
    for row, real, text in zip(ids.tolist(), mask.tolist(), texts, strict=True):
        pieces = [3 if piece == processor.unk_id() else piece + 1 for piece in processor.encode(text)]
        expected = [0, *pieces, 2]
        assert row == expected + [1] * (len(row) - len(expected))
        assert real == [True] * len(expected) + [False] * (len(row) - len(expected))
        longest = max(longest, len(expected))
    assert ids.shape == mask.shape == (3, longest)
    assert 3 in ids[2]


def test_tokenizer__cuts_and_counts(tokenizer: SentencePieceTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    long = " ".join(["star"] * 40)
    whole = SentencePieceTokenizer(tokenizer.path, max_length=64)([long])[0][0]
    with caplog.at_level(logging.WARNING):
        ids, mask = tokenizer([long, "a star", long])
        tokenizer([long])
    assert ids.shape == (3, 16)
    assert ids[0].tolist() == [*whole[:15].tolist(), 2]
    assert bool(mask[0].all())
    assert tokenizer.truncated == 3
    assert len(caplog.records) == 1
    assert "16 tokens" in caplog.text


def test_tokenizer__exactly_full_is_not_cut(tokenizer: SentencePieceTokenizer) -> None:
    pieces = len(SentencePieceTokenizer(tokenizer.path, max_length=64)(["a star"])[0][0])
    short = SentencePieceTokenizer(tokenizer.path, max_length=pieces)
    short(["a star"])
    assert short.truncated == 0


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_tokenizer__no_words(tokenizer: SentencePieceTokenizer, text: str) -> None:
    with pytest.raises(DataError, match="no words"):
        tokenizer(["a star", text])


def test_tokenizer__half_a_surrogate_pair(tokenizer: SentencePieceTokenizer) -> None:
    assert torch.equal(tokenizer(["a star\ud83d"])[0], tokenizer(["a star?"])[0])


def test_tokenizer__no_texts(tokenizer: SentencePieceTokenizer) -> None:
    ids, mask = tokenizer([])
    assert ids.shape == mask.shape == (0, 2)


def test_tokenizer__sent_to_a_worker(tokenizer: SentencePieceTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(copy(["a red star"])[0], tokenizer(["a red star"])[0])


def test_check_fits__rows(tokenizer: SentencePieceTokenizer) -> None:
    assert tokenizer.mask_id == 41  # 40 pieces
    assert tokenizer.vocabulary_size == 42
    for rows in (42, 48, 50, 105):  # the official table has 8 rows more than ids
        tokenizer.check_fits(rows)
    for rows in (10, 41, 106, 64_010):
        with pytest.raises(ConfigError, match=r"backbone\.tokenizer") as caught:
            tokenizer.check_fits(rows)
        assert tokenizer.path in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no model at all", bytes(200)])
def test_tokenizer__not_sentencepiece(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "beit3.spm"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a sentencepiece model") as caught:
        SentencePieceTokenizer(path)
    assert str(path) in str(caught.value)


def test_tokenizer__missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is missing: set backbone\.tokenizer"):
        SentencePieceTokenizer(tmp_path / "beit3.spm")
    with pytest.raises(CheckpointError, match="cannot be read"):
        SentencePieceTokenizer(tmp_path)


def test_tokenizer__another_layout(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("a red star\na blue circle\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "t5"), vocab_size=30,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="not laid out like BEiT-3's"):
        SentencePieceTokenizer(tmp_path / "t5.model")


def test_tokenizer__too_short() -> None:
    with pytest.raises(ConfigError, match="max_text_length=2"):
        SentencePieceTokenizer("any", max_length=2)

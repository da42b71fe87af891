"""The tokenizers of CLIP, BERT and SigLIP 2: ids are those of transformers, files that do not fit are refused."""

from __future__ import annotations

import importlib.util
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from huggingface_hub.errors import EntryNotFoundError
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mwa_lightning.data.subwords import make_tokenizer
from mwa_lightning.data.tokenizers import Tokenizer
from mwa_lightning.errors import CheckpointError, ConfigError, DataError

with_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)

CORPUS = ["a red circle left of a blue square", "two green stars, 3 dogs!", "The cat's café isn't naïve 42"] * 20
TEXTS = [
    "A red circle",
    "The  CAFÉ isn't\tnaïve: 42 dogs?!",
    "two Green STARS left of Ωmega 中文 <|endoftext|> [SEP] and more",
    "café in two code points, café in one",
]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt of a small byte pair encoding."""
    folder = tmp_path_factory.mktemp("clip")
    pipeline = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    pipeline.normalizer = normalizers.Lowercase()
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    pipeline.train_from_iterator(CORPUS, trainer)
    pipeline.model.save(str(folder))
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.txt of small word pieces."""
    folder = tmp_path_factory.mktemp("bert")
    pipeline = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pipeline.normalizer = normalizers.BertNormalizer()
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pipeline.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    pipeline.model.save(str(folder))
    return folder


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json as Gemma's: byte pairs with byte fallback over text whose spaces are marked, not lower-cased."""
    folder = tmp_path_factory.mktemp("siglip")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pipeline = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    pipeline.normalizer = normalizers.Replace(" ", "▁")
    pipeline.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    pipeline.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*special, *byte_pieces], show_progress=False)
    pipeline.train_from_iterator(CORPUS, trainer)
    pipeline.save(str(folder / "tokenizer.json"))
    return folder


def real_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids, mask = tokenizer([text])
    return ids[0][mask[0]].tolist()


@with_transformers
def test_clip__ids_of_transformers(clip_folder: Path) -> None:
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(str(clip_folder))
    ours = make_tokenizer("clip", clip_folder, max_length=200)
    for text in TEXTS:
        assert real_ids(ours, text) == theirs(text)["input_ids"]
    short = make_tokenizer("clip", clip_folder, max_length=8)
    assert real_ids(short, TEXTS[2]) == theirs(TEXTS[2], truncation=True, max_length=8)["input_ids"]
    theirs.backend_tokenizer.save(str(clip_folder / "whole.json"))
    whole = make_tokenizer("clip", clip_folder / "whole.json", max_length=200)
    assert [real_ids(whole, text) for text in TEXTS] == [real_ids(ours, text) for text in TEXTS]


@with_transformers
def test_bert__ids_of_transformers(bert_folder: Path) -> None:
    from transformers import BertTokenizer

    theirs = BertTokenizer.from_pretrained(str(bert_folder))
    ours = make_tokenizer("bert", bert_folder, max_length=200)
    for text in TEXTS:
        assert real_ids(ours, text) == theirs(text)["input_ids"]
    ids, mask = ours(TEXTS)
    together = theirs(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(ids, together["input_ids"])
    assert torch.equal(mask, together["attention_mask"].bool())
    assert torch.equal(make_tokenizer("bert", bert_folder / "vocab.txt", max_length=200)(TEXTS)[0], ids)


@with_transformers
def test_siglip__ids_of_transformers(siglip_folder: Path) -> None:
    from transformers import Siglip2Tokenizer

    content = json.loads((siglip_folder / "tokenizer.json").read_text())["model"]
    merges = [tuple(pair) for pair in content["merges"]]
    theirs = Siglip2Tokenizer(vocab=content["vocab"], merges=merges, add_eos_token=True, padding_side="right")
    ours = make_tokenizer("siglip", siglip_folder, max_length=64, fixed_length=True)
    ids, mask = ours(TEXTS[:2])
    assert ids.shape == mask.shape == (2, 64)
    assert bool(mask.all())
    for row, text in zip(ids.tolist(), TEXTS[:2], strict=True):
        pieces = theirs(text, add_special_tokens=False)["input_ids"]
        assert row == [*pieces, 1, *[0] * (63 - len(pieces))]
    assert torch.equal(ours([TEXTS[0].upper()])[0], ours([TEXTS[0]])[0])
    cut = make_tokenizer("siglip", siglip_folder, max_length=5, fixed_length=True)
    assert cut([TEXTS[1]])[0][0].tolist() == [*ids[1, :4].tolist(), 1]
    assert cut.truncated == 1


def test_fixed_length__no_texts(siglip_folder: Path) -> None:
    ids, mask = make_tokenizer("siglip", siglip_folder, max_length=64, fixed_length=True)([])
    assert ids.shape == mask.shape == (0, 64)


def test_fixed_length__of_sentencepiece(spm: Path) -> None:
    ids, mask = make_tokenizer("sentencepiece", spm, max_length=16, fixed_length=True)(["a star", "a"])
    free, real = make_tokenizer("sentencepiece", spm, max_length=16)(["a star", "a"])
    assert ids.shape == (2, 16)
    assert bool(mask.all())
    assert torch.equal(ids[:, : free.shape[1]], free)
    assert bool((ids[:, free.shape[1] :] == 1).all())
    assert not bool(real.all())


def test_tokenizer__sent_to_a_worker(clip_folder: Path) -> None:
    tokenizer = make_tokenizer("clip", clip_folder, max_length=77)
    assert torch.equal(pickle.loads(pickle.dumps(tokenizer))(TEXTS)[0], tokenizer(TEXTS)[0])


def test_check_fits__rows_of_blip_and_albef(bert_folder: Path) -> None:
    tokenizer = make_tokenizer("bert", bert_folder, max_length=40)
    size = tokenizer.vocabulary_size
    assert size == len((bert_folder / "vocab.txt").read_text().split())
    tokenizer.check_fits(size)  # ALBEF
    tokenizer.check_fits(size + 2)  # BLIP, with [DEC] and [ENC]
    with pytest.raises(ConfigError, match=r"backbone\.tokenizer"):
        tokenizer.check_fits(size - 1)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_tokenizer__no_words(siglip_folder: Path, text: str) -> None:
    with pytest.raises(DataError, match="no words"):
        make_tokenizer("siglip", siglip_folder, max_length=64, fixed_length=True)([text])


def test_tokenizer__half_a_surrogate_pair(bert_folder: Path) -> None:
    tokenizer = make_tokenizer("bert", bert_folder, max_length=40)
    assert torch.equal(tokenizer(["a star\ud83d"])[0], tokenizer(["a star?"])[0])


def test_tokenizer__files_that_do_not_fit(tmp_path: Path, clip_folder: Path, siglip_folder: Path) -> None:
    def refused(kind: str, reference: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            make_tokenizer(kind, reference, max_length=20)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is missing" in refused("clip", tmp_path / "gone")
    assert "vocab.json and merges.txt" in refused("clip", tmp_path)
    assert "lacks one of [CLS], [SEP], [PAD]" in refused("bert", siglip_folder)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "cannot be read" in refused("siglip", tmp_path)
    with pytest.raises(ConfigError, match="choose one of sentencepiece, clip, bert, siglip"):
        make_tokenizer("gemma", clip_folder, max_length=20)
    with pytest.raises(ConfigError, match="max_text_length=2: give at least 3"):
        make_tokenizer("clip", clip_folder, max_length=2)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, clip_folder: Path) -> Callable[[set[str], bool], list[tuple[str, bool]]]:
    """Puts a hub in the place of the real one, with these files, in the cache or not; returns what is asked of it."""

    def install(files: set[str], cached: bool) -> list[tuple[str, bool]]:
        asked: list[tuple[str, bool]] = []

        def download(name: str, file: str, *, revision: str | None, local_files_only: bool = False) -> str:
            assert (name, revision) == ("someone/clip", None)
            asked.append((file, local_files_only))
            if file not in files or (local_files_only and not cached):
                raise EntryNotFoundError("not here\nand more lines")
            return str(clip_folder / file)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        monkeypatch.setattr("mwa_lightning.hub_access._check_reachable", lambda *_: None)
        return asked

    return install


def test_hub__cache_goes_first(hub: Callable[[set[str], bool], list[tuple[str, bool]]], clip_folder: Path) -> None:
    asked = hub({"vocab.json", "merges.txt"}, True)
    found = make_tokenizer("clip", "hf://someone/clip", max_length=77)
    assert asked == [("tokenizer.json", True), ("vocab.json", True), ("merges.txt", True)]
    assert torch.equal(found(TEXTS)[0], make_tokenizer("clip", clip_folder, max_length=77)(TEXTS)[0])
    asked = hub({"vocab.json", "merges.txt"}, False)
    make_tokenizer("clip", "hf://someone/clip", max_length=77)
    assert [file for file, only_cached in asked if not only_cached] == ["tokenizer.json", "vocab.json", "merges.txt"]


def test_hub__repository_without_these_files(hub: Callable[[set[str], bool], list[tuple[str, bool]]]) -> None:
    hub(set(), False)
    with pytest.raises(
        CheckpointError,
        match=r"tokenizer hf://someone/clip: the repository has no tokenizer.json and no vocab.json; give",
    ) as caught:
        make_tokenizer("clip", "hf://someone/clip", max_length=77)
    assert "\n" not in str(caught.value)

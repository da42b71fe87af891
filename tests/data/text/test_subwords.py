"""The tokenizers of CLIP, BERT and SigLIP: ids are those of transformers, files that do not fit are refused."""

from __future__ import annotations

import gzip
import importlib.util
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
from huggingface_hub.errors import EntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mwa_lightning.data.text.subwords import make_tokenizer
from mwa_lightning.data.text.tokenizers import Tokenizer
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
def openai_file(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> Path:
    """The merges as OpenAI and open_clip have them; beside it, by OpenAI's rule, the two files of transformers."""
    folder = tmp_path_factory.mktemp("openai")
    merges = (clip_folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printed] + [chr(256 + number) for number in range(256 - len(printed))]
    names = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair.split()) for pair in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    content = "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges, ""])
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress(content.encode()))
    return path


@pytest.fixture(scope="session")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """spiece.model in the layout of SigLIP, of T5."""
    folder = tmp_path_factory.mktemp("spiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(folder / "spiece"), vocab_size=60,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    return folder / "spiece.model"


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.model in the layout of SigLIP 2, of Gemma."""
    folder = tmp_path_factory.mktemp("gemma")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=330,
        byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", add_dummy_prefix=False, remove_extra_whitespaces=False, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return folder / "tokenizer.model"


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


# Any text but half surrogate pairs; words of the corpus make pieces of several letters likely.
WORDS = [*" ".join(CORPUS[:3]).split(), *TEXTS]
ANY_TEXT = st.lists(st.text(max_size=12) | st.sampled_from(WORDS), min_size=1).map(" ".join)


@with_transformers
def test_clip__openais_file_gives_the_ids_of_transformers(openai_file: Path) -> None:
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(str(openai_file.parent))
    ours = make_tokenizer("clip", openai_file, max_length=2000)

    @settings(max_examples=40, deadline=None)
    @given(ANY_TEXT)
    def check(text: str) -> None:
        expected = theirs(text)["input_ids"]
        if len(expected) > 2:
            assert real_ids(ours, text) == expected

    check()
    unpacked = openai_file.with_name("merges of CLIP")
    unpacked.write_bytes(gzip.decompress(openai_file.read_bytes()))
    for other in (unpacked, openai_file.parent):
        assert torch.equal(make_tokenizer("clip", other, max_length=77)(TEXTS)[0], ours(TEXTS)[0])
    assert torch.equal(pickle.loads(pickle.dumps(ours))(TEXTS)[0], ours(TEXTS)[0])


@with_transformers
def test_siglip__sentencepiece_model_gives_the_ids_of_transformers(spiece: Path) -> None:
    """Of SigLIP (1): lower-cased, no punctuation, padded with the end of the text."""
    from transformers import SiglipTokenizer

    theirs = SiglipTokenizer(str(spiece))
    ours = make_tokenizer("siglip", spiece, max_length=64, fixed_length=True)
    texts = ["A red circle.", "Two  GREEN stars,\t3 dogs -- isn't it? ", "Ωmega CAFÉ 中文", "star " * 99]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=64, return_tensors="pt")["input_ids"]
    ids, mask = ours(texts)
    assert torch.equal(ids, expected)
    assert bool(mask.all())
    assert torch.equal(make_tokenizer("siglip", spiece.parent, max_length=64, fixed_length=True)(texts)[0], ids)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(texts)[0], ids)


def test_siglip__sentencepiece_model_of_gemma(gemma: Path) -> None:
    """Of SigLIP 2: lower-cased, punctuation and blanks kept, padded with a token for that."""
    ours = make_tokenizer("siglip", gemma.parent, max_length=64, fixed_length=True)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(gemma))
    for text in ("A red circle.", "Two  GREEN stars,\t3 dogs -- isn't it?", "Ωmega CAFÉ 中文"):
        pieces = processor.encode(text.lower())
        assert real_ids(ours, text) == [*pieces, 1, *[0] * (63 - len(pieces))]


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


STRANGE = {
    "many letters": "a" * 10**5,
    "many words": "star " * 10**4,
    "control characters": "".join(map(chr, range(32))) + "star",
    "NUL": "a\0star",
    "half a surrogate pair": "star \ud83d",
    "right to left": "\u202estar שלום مرحبا",
    "joined emoji": "👩\u200d👩\u200d👧 star",
    "special tokens": "<|endoftext|> </s> [SEP] <eos> <pad> <s> star",
    "unassigned": "\U000e0001\U0010ffff star",
    "combining": "star" + "\u0301" * 10**4,
}


@pytest.mark.parametrize("kind", ["clip", "openai", "bert", "siglip", "spiece", "gemma", "beit3"])
def test_tokenizer__strange_texts_become_ids_of_the_table(kind: str, request: pytest.FixtureRequest) -> None:
    fixture, reader = {
        "clip": ("clip_folder", "clip"), "openai": ("openai_file", "clip"), "bert": ("bert_folder", "bert"),
        "siglip": ("siglip_folder", "siglip"), "spiece": ("spiece", "siglip"), "gemma": ("gemma", "siglip"),
        "beit3": ("spm", "sentencepiece"),
    }[kind]  # fmt: skip
    tokenizer = make_tokenizer(reader, request.getfixturevalue(fixture), max_length=40)
    ids, mask = tokenizer(list(STRANGE.values()))
    assert ids.shape == (len(STRANGE), 40)
    assert 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocabulary_size
    assert int(mask.sum(dim=1).min()) >= 2
    for nothing in ("", " \t\n", "\u2003", " " * 10**5):
        with pytest.raises(DataError, match=r"^the text '.{0,170}' has no words: write some, or leave it out$"):
            tokenizer(["star", nothing])


def test_tokenizer__one_string_is_one_text(clip_folder: Path) -> None:
    tokenizer = make_tokenizer("clip", clip_folder, max_length=77)
    one = tokenizer(["a red dog"])
    assert all(torch.equal(*pair) for pair in zip(tokenizer("a red dog"), one, strict=True))
    assert torch.equal(tokenizer(np.array("a red dog"))[0], one[0])
    both = ["a red dog", "two stars"]
    for same in (tuple(both), np.array(both), np.array(both, dtype=object), (text for text in both)):
        assert torch.equal(tokenizer(same)[0], tokenizer(both)[0])


@pytest.mark.parametrize(
    ("given_texts", "said"),
    [
        (b"a dog", "not bytes: decode them first"),
        (None, "not None"),
        (7, "not a int"),
        (Path("a"), "not a PosixPath"),
        ({"a dog": 1}, "not a dict"),
        ({"a dog"}, "not a set"),
        (["a dog", None], "number 1 of these, from 0, is None"),
        (["a dog", b"two"], "number 1 of these, from 0, is bytes: decode them first"),
        ([["a", "dog"]], "number 0 of these, from 0, is a list"),
        (np.array([1, 2]), "number 0 of these, from 0, is a int64"),
    ],
)
def test_tokenizer__what_is_no_text_is_one_line(clip_folder: Path, given_texts: object, said: str) -> None:
    with pytest.raises(DataError) as caught:
        make_tokenizer("clip", clip_folder, max_length=77)(given_texts)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tokenizer__files_that_do_not_fit(tmp_path: Path, clip_folder: Path, siglip_folder: Path) -> None:
    def refused(kind: str, reference: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            make_tokenizer(kind, reference, max_length=20)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is missing" in refused("clip", tmp_path / "gone")
    assert "vocab.json and merges.txt" in refused("clip", tmp_path)
    assert "another model, it has no [CLS] and no [SEP] and no [PAD]" in refused("bert", siglip_folder)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "cannot be read" in refused("siglip", tmp_path)
    with pytest.raises(ConfigError, match="choose one of sentencepiece, clip, bert, siglip"):
        make_tokenizer("gemma", clip_folder, max_length=20)
    with pytest.raises(ConfigError, match="max_text_length=2: give at least 3"):
        make_tokenizer("clip", clip_folder, max_length=2)


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("clip", b"<!DOCTYPE html>\n<html>", "is an HTML page, not a tokenizer: download the file itself"),
        ("bert", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
        ("siglip", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "is an XML answer of a server"),
        ("clip", b'{"error":"Repository not found"}', "is an error of a server"),
        ("sentencepiece", b"", "is an empty file, not a tokenizer"),
        ("clip", b"PK\x03\x04....", "is weights or an archive, not a tokenizer: give the tokenizer beside"),
        ("bert", b"\x00\x01\x02 nothing known", "is in no format of a tokenizer"),
        ("clip", b'{"a": 1, "b": 2}', "cannot be read (merges.txt belongs to it: put both into a folder"),
        ("clip", b"\x1f\x8b\x08 cut short", "cannot be read"),
        ("clip", b"[PAD]\n[UNK]\nthe\n", "has the format of vocab.txt, in which this kind does not come"),
        ("bert", b"#version: 0.2\na b\n", "has the format of bpe_simple_vocab_16e6.txt.gz, in which this kind"),
    ],
)  # fmt: skip
def test_tokenizer__what_is_none_is_named(tmp_path: Path, kind: str, content: bytes, said: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        make_tokenizer(kind, tmp_path / "file", max_length=20)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tokenizer__folders_that_lack_something(tmp_path: Path, clip_folder: Path) -> None:
    def refused() -> str:
        with pytest.raises(CheckpointError) as caught:
            make_tokenizer("clip", tmp_path, max_length=20)
        return str(caught.value)

    assert "it has no file of a tokenizer" in refused()
    for name in ("tokenizer_config.json", "vocab.json"):
        (tmp_path / name).write_text("{}")
    assert (
        "a folder without a vocabulary (it has tokenizer_config.json, vocab.json only): give a tokenizer.json"
        in refused()
    )
    with pytest.raises(CheckpointError, match=r"vocab.json has no merges.txt beside it, which belongs to it: set"):
        make_tokenizer("clip", tmp_path / "vocab.json", max_length=20)
    named = make_tokenizer("clip", clip_folder / "merges.txt", max_length=20)
    assert torch.equal(named(TEXTS)[0], make_tokenizer("clip", clip_folder, max_length=20)(TEXTS)[0])


def test_tokenizer__of_another_model(tmp_path: Path) -> None:
    """GPT-2's is written as CLIP's, and has one of its special tokens."""
    pipeline = tokenizers.Tokenizer(models.BPE(vocab={"<|endoftext|>": 0, "a": 1}, merges=[]))
    pipeline.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"another model, it has no <\|startoftext\|>: set backbone.tokenizer"):
        make_tokenizer("clip", tmp_path, max_length=20)


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
        match=r"tokenizer hf://someone/clip: the repository has no tokenizer.json and no vocab.json and no bpe_",
    ) as caught:
        make_tokenizer("clip", "hf://someone/clip", max_length=77)
    assert "\n" not in str(caught.value)

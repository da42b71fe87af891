"""Texts as BLIP's and ALBEF's own code leaves them, word for word."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from mwa_lightning.data.text.cleaning import CleaningForm, TextCleaning
from mwa_lightning.data.text.subwords import make_tokenizer
from mwa_lightning.errors import DataError
from mwa_lightning.training.assembly.build import build_tokenizer
from scripts.adapter_grid import Cell, composed

# Worked out by hand from the rules of the two `pre_caption`.
EXAMPLES = [
    # text, BLIP's, ALBEF's
    ("A man, in a T-shirt.", "a man, in a t-shirt", "a man in a t shirt"),
    ("It's 5:30 (p.m.)!", "it's 5 30 p m", "its 530 pm"),
    ('He said: "Go/stop?"  Twice;', "he said go/stop? twice", "he said go stop twice"),
    ("<person> #1 ~ *star*\n", "<person> 1 star", "person 1 star"),
    (" two\n\nlines \n", "two lines", "two lines"),
    ("one\ttab", "one\ttab", "one\ttab"),
    ("...", "", ""),
    ("ÉTÉ & Æ", "été & æ", "été & æ"),
]


@pytest.mark.parametrize(("text", "blip", "albef"), EXAMPLES)
def test_cleaning__as_in_the_original_code(text: str, blip: str, albef: str) -> None:
    assert TextCleaning("blip")(text) == (blip, False)
    assert TextCleaning("albef")(text) == (albef, False)


@pytest.mark.parametrize("form", ["blip", "albef"])
def test_cleaning__keeps_so_many_words(form: CleaningForm) -> None:
    text = "one. two - three four"
    words = {"blip": ["one", "two", "-", "three", "four"], "albef": ["one", "two", "three", "four"]}[form]
    for count in range(1, 7):
        assert TextCleaning(form, count)(text) == (" ".join(words[:count]), count < len(words))


def test_tokenizer__cleans_first_and_counts_what_it_cuts(spm: Path) -> None:
    plain = make_tokenizer("sentencepiece", spm, max_length=16)
    cleaning = make_tokenizer("sentencepiece", spm, max_length=16, cleaning=TextCleaning("albef", 3))
    again = pickle.loads(pickle.dumps(cleaning))
    found, wanted = again.encode(["A star, or a RING!", "a star"]), plain.encode(["a star or", "a star"])
    assert found.ids.tolist() == wanted.ids.tolist()
    assert (found.truncated, wanted.truncated) == (1, 0)
    assert again.limit == "3 words or 16 tokens are truncated (backbone.max_words, backbone.max_text_length)"
    with pytest.raises(DataError, match=r"'!\?' has no words"):
        cleaning(["!?"])


def test_tokenizer__of_a_configuration() -> None:
    config = composed(Cell("none", "blip_tiny", "retrieval"))
    assert build_tokenizer(config).cleaning is None
    config.backbone.text_cleaning, config.backbone.max_words = "blip", 2
    assert build_tokenizer(config).cleaning == TextCleaning("blip", 2)
    cut, whole = build_tokenizer(config).encode(["A ring. A star."]), build_tokenizer(config).encode(["a ring"])
    assert cut.ids.tolist() == whole.ids.tolist()

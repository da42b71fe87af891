"""What `encode_image`, `encode_text` and a model for statements take from callers, and refuse in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mwa_lightning.errors import ConfigError
from mwa_lightning.tasks.inputs import check_statements
from tests.tasks.fusion_models import make_batch, make_model

MODEL = make_model(2).eval()
BATCH = make_batch(1, 2, 3)
IMAGES, IDS, MASK = BATCH.images, BATCH.ids, BATCH.mask


@torch.no_grad()
def test_encode_text__what_a_tokenizer_gives_in_any_way() -> None:
    expected = MODEL.encode_text(IDS, MASK)
    for given in ((IDS, MASK.long()), ((IDS, MASK),), (IDS.int(), MASK)):
        assert torch.equal(MODEL.encode_text(*given), expected)
    assert torch.equal(MODEL(IMAGES, (IDS, MASK))[1], expected)
    whole = torch.ones_like(MASK)
    assert torch.equal(MODEL.encode_text(IDS, None), MODEL.encode_text(IDS, whole))


@torch.no_grad()
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_encode__models_of_half_precision(kind: torch.dtype) -> None:
    expected = MODEL.encode_image(IMAGES), MODEL.encode_text(IDS, MASK)
    normalised = MODEL.backbone.normalize(IMAGES)
    half = make_model(2).eval().to(kind)
    found = half.encode_image(IMAGES), half.encode_text(IDS, MASK)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours, theirs, atol=0.02)
    assert torch.allclose(half.encode_image(normalised), found[0], atol=0.01)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (IMAGES[0], r"not one of shape (3, 16, 16); images[None] makes a batch of one"),
        (IMAGES.permute(0, 2, 3, 1), "channels come before the sides"),
        (IMAGES[:, :, :8], "do not fit: this model takes 3 x 16 x 16, which its transform makes"),
        (IMAGES[:, :1], "do not fit: this model takes 3 x 16 x 16"),
        (IMAGES.float(), "are taken as normalised, and these go up to 25"),
        (IMAGES.long(), "images are uint8 from 0 to 255, or normalised and floating, not torch.int64"),
        (IMAGES.numpy(), "not ndarray: transform([...]) makes one"),
        ([IMAGES[0]], "not list: transform([...]) makes one"),
    ],
)
def test_encode_image__refused_in_one_line(images: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MODEL.encode_image(images)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_encode_image__fractions_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    MODEL.encode_image(IMAGES / 255)
    assert "are taken as normalised; if they are not, give uint8" in caplog.text


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ((IDS,), "texts need their mask too: give *tokenizer(texts), which has both, or None"),
        ((IDS[0], MASK[0]), "texts are token ids (b, n), whole numbers, not of shape (6,)"),
        ((IDS.float(), MASK), "not of shape (3, 6), torch.float32"),
        ((["a dog"],), "not list: tokenizer([...]) gives them"),
        ((IDS + 40, MASK), "test knows 0 to 39; take the tokenizer that was loaded with it"),
        ((IDS - 99, MASK), "token ids from -"),
        ((IDS, MASK[:, :2]), "of the shape (3, 6) of their ids, not of shape (3, 2)"),
        ((IDS, MASK.float()), "the mask of texts is bool, True on real tokens"),
        ((IDS, np.array(MASK)), "not ndarray"),
        ((IDS.repeat(1, 100), MASK.repeat(1, 100)), "texts of 600 tokens: test has positions for 512"),
    ],
)  # fmt: skip
def test_encode_text__refused_in_one_line(texts: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MODEL.encode_text(*texts)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model__says_where_it_is() -> None:
    moved: Tensor = torch.zeros(1, device=MODEL.device)
    assert moved.device == next(MODEL.parameters()).device


def test_check_statements__as_many_images_as_a_statement_has() -> None:
    pairs = torch.zeros(2, 2, 3, 4, 4)
    check_statements(pairs, IDS[:2], each=2)
    for images, ids, wanted in (
        (pairs[:, :1], IDS[:2], "2 texts (2, 2, 3, 4, 4)"),
        (pairs, IDS[:1], "1 text (1, 2, 3"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_statements(images, ids, each=2)
        assert f"of shape {tuple(images.shape)} do not fit: this model takes 2 with each text, so of {wanted}" in str(
            caught.value
        )

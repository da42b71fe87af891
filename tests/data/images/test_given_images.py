"""What `transform` takes for a picture, and what it refuses in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mwa_lightning.data.images.reader import PictureRule
from mwa_lightning.data.images.transforms import EvaluationTransform
from mwa_lightning.errors import DataError

TRANSFORM = EvaluationTransform(image_size=16, resize="crop", rule=PictureRule())
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
EXPECTED = TRANSFORM(Image.fromarray(PIXELS))
CHANNELS_FIRST = PIXELS.transpose(2, 0, 1)


@pytest.mark.parametrize(
    "given",
    [
        PIXELS,
        CHANNELS_FIRST,
        PIXELS[::-1][::-1],
        PIXELS / 255,
        (CHANNELS_FIRST / 255).astype(np.float32),
        torch.tensor(PIXELS),
        torch.tensor(CHANNELS_FIRST),
        torch.tensor(CHANNELS_FIRST / 255, requires_grad=True),
        (torch.tensor(CHANNELS_FIRST) / 255).half(),
        np.concatenate([PIXELS, np.full((20, 30, 1), 255, dtype=np.uint8)], axis=2),
        Image.fromarray(PIXELS).convert("RGBA"),
    ],
    ids=lambda given: f"{type(given).__name__}-{getattr(given, 'dtype', '')}-{getattr(given, 'shape', '')}",
)
def test_transform__one_picture_in_many_forms(given: Any) -> None:
    assert torch.equal(TRANSFORM(given), EXPECTED)


def test_transform__files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a photo.png"
    Image.fromarray(PIXELS).save(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in (path, str(path), "~/a photo.png", Image.open(path)):
        assert torch.equal(TRANSFORM(given), EXPECTED)


def test_transform__gray_and_transparent() -> None:
    gray = PIXELS[:, :, 0]
    expected = TRANSFORM(Image.fromarray(gray).convert("RGB"))
    for given in (gray, gray[:, :, None], gray[None], torch.tensor(gray)[None], Image.fromarray(gray)):
        assert torch.equal(TRANSFORM(given), expected)
    clear = np.zeros((20, 30, 4), dtype=np.uint8)
    for given in (clear, clear.transpose(2, 0, 1), Image.fromarray(clear)):
        assert bool((TRANSFORM(given) == 255).all())
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    assert torch.equal(TRANSFORM(deep), expected)


def test_transform__several_are_a_batch(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "one.png")
    mixed = [Image.fromarray(PIXELS), tmp_path / "one.png", torch.tensor(CHANNELS_FIRST)]
    for given in (mixed, tuple(mixed), np.stack([PIXELS] * 3), torch.tensor(np.stack([CHANNELS_FIRST] * 3))):
        assert torch.equal(TRANSFORM(given), torch.stack([EXPECTED] * 3))
    assert TRANSFORM([]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "not NoneType"),
        (7, "not int"),
        (b"\x89PNG", "not bytes: open it with PIL.Image.open(io.BytesIO(...))"),
        ({"bytes": b""}, "not dict"),
        ("https://example.org/a.jpg", "is an address: download it, and give the file"),
        ("gone.jpg", "image gone.jpg is missing: there is no such file"),
        ([PIXELS, None], "not NoneType"),
        (np.zeros((3, 20, 3), dtype=np.uint8), "an array of 3 x 20 x 3 could have its channels first or last"),
        (np.zeros((20, 30, 2), dtype=np.uint8), "an array of 20 x 30 x 2 has no axis of 1, 3 or 4 channels"),
        (np.zeros(5, dtype=np.uint8), "an array of 5 is no image"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "an array of 0 x 4 x 3 is no image"),
        (PIXELS.astype(np.int64), "an array of int64 with values from 0 to 255 is no image: give uint8"),
        (PIXELS.astype(np.float32), "values from 0.0 to 255.0 is no image: give uint8 from 0 to 255, or fractions"),
        (PIXELS / 255 - 0.5, "what is normalised already goes into the model as it is"),
        (np.full((20, 30, 3), np.nan), "values from nan to nan"),
    ],
    ids=lambda given: str(given)[:20] if isinstance(given, str) else type(given).__name__,
)
def test_transform__what_is_no_picture_is_one_line(given: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        TRANSFORM(given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_transform__damage_in_an_open_picture_is_one_line(tmp_path: Path) -> None:
    for mode in ("P", "RGB"):
        Image.fromarray(PIXELS).convert(mode).save(tmp_path / "whole.png")
        (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-200])
        with pytest.raises(DataError, match="the image does not decode"):
            TRANSFORM(Image.open(tmp_path / "cut.png"))

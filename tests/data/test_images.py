"""Every kind of file is read as its owners expect, and every damaged one gives a line that names it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mwa_lightning.data import images
from mwa_lightning.data.images import ImageReader
from mwa_lightning.errors import DataError

OFFICIAL = ImageReader(exif=False, scale_deep=False)
OWN = ImageReader(exif=True, scale_deep=True)


def _pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("reader", [OFFICIAL, OWN])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("1", "png"), ("P", "png"), ("P", "gif"), ("LA", "png"), ("RGBA", "png"), ("RGB", "bmp"),
     ("CMYK", "jpg"), ("CMYK", "tiff")],
)  # fmt: skip
def test_image_reader__converts_as_pillow(
    tmp_path: Path, colours: np.ndarray, mode: str, suffix: str, reader: ImageReader
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(colours).convert(mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(_pixels(reader(path)), expected)


def test_image_reader__drops_alpha(tmp_path: Path, colours: np.ndarray) -> None:
    alpha = np.zeros((4, 6, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([colours, alpha], axis=2)).save(tmp_path / "a.png")
    assert np.array_equal(_pixels(OFFICIAL(tmp_path / "a.png")), colours)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_image_reader__sixteen_bits(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    values = np.array([[0, 100, 128, 129, 255], [256, 385, 386, 32896, 65535]], dtype=np.uint16)
    if suffix == "pgm":
        path.write_bytes(b"P5 5 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    with Image.open(path) as image:
        assert image.mode in ("I;16", "I")
    clipped = [[0, 100, 128, 129, 255], [255, 255, 255, 255, 255]]
    scaled = [[0, 0, 0, 1, 1], [1, 1, 2, 128, 255]]
    for reader, expected in ((OFFICIAL, clipped), (OWN, scaled)):
        assert np.array_equal(_pixels(reader(path)), np.repeat(np.array(expected)[..., None], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_reader__camera_turned(tmp_path: Path, colours: np.ndarray, orientation: int) -> None:
    turns = {
        1: colours,
        2: colours[:, ::-1],
        3: colours[::-1, ::-1],
        4: colours[::-1],
        5: colours.transpose(1, 0, 2),
        6: np.rot90(colours, -1),
        7: np.rot90(colours, 2).transpose(1, 0, 2),
        8: np.rot90(colours),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(colours).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(_pixels(OFFICIAL(tmp_path / "a.png")), colours)
    assert np.array_equal(_pixels(OWN(tmp_path / "a.png")), turns[orientation])


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_image_reader__senseless_note(tmp_path: Path, colours: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(colours).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(_pixels(OWN(tmp_path / "a.png")), colours)


def _damaged(kind: str, path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no picture\n")
    elif kind == "truncated":
        Image.fromarray(pixels).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "header only":
        Image.fromarray(pixels).save(path, "PNG")
        path.write_bytes(path.read_bytes()[:40])
    elif kind == "damaged inside":
        Image.fromarray(pixels).save(path, "PNG")
        whole = bytearray(path.read_bytes())
        whole[100:200] = bytes(100)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "is missing"),
        ("folder", "is a folder"),
        ("empty", "has 0 bytes"),
        ("text", "no image format"),
        ("truncated", "does not decode"),
        ("header only", "no image format"),
        ("damaged inside", "does not decode"),
    ],
)
@pytest.mark.parametrize("reader", [OFFICIAL, OWN])
def test_image_reader__damaged(tmp_path: Path, kind: str, says: str, reader: ImageReader) -> None:
    path = tmp_path / "a.jpg"
    _damaged(kind, path)
    with pytest.raises(DataError, match=says) as caught:
        reader(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [14_000, 60_000])
def test_image_reader__bomb(tmp_path: Path, side: int) -> None:
    path = tmp_path / "a.bmp"
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 1, 0, 0, 0, 0, 2, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 0, 0, 0, 62) + header + bytes(8))
    with pytest.raises(DataError, match="more than 178,956,970 pixels") as caught:
        OWN(path)
    assert str(path) in str(caught.value)


def test_image_reader__large_but_no_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr(images, "MAX_PIXELS", 20)
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    assert OWN(tmp_path / "a.png").size == (4, 4)
    assert not recwarn.list

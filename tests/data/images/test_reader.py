"""Every kind of file is read as its owners expect, and every damaged one gives a line that names it."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mwa_lightning.data.images import reader as images
from mwa_lightning.data.images.reader import FORMATS, ImageReader, PictureRule, colour_of, rule_of
from mwa_lightning.data.storage.stores import MissingImage, PictureFolder
from mwa_lightning.errors import ConfigError, DataError

OFFICIAL = ImageReader(exif=False, scale_deep=False, background=None)
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


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _two(mode: str) -> Image.Image:
    """A transparent pixel of 170, and an opaque one of 85."""
    image = Image.new("LA", (2, 1), (170, 0))
    image.putpixel((1, 0), (85, 255))
    if mode != "P":
        return image.convert(mode)
    palette = Image.new("P", (2, 1))
    palette.putpalette([170] * 3 + [85] * 3)
    palette.putpixel((1, 0), 1)
    return palette


def _png(depth: int, colour: int, pixels: bytes, key: bytes) -> bytes:
    """A PNG of two pixels, with a colour that is transparent: of many kinds, Pillow writes none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"tRNS", key) if key else b"", chunk(b"IDAT", zlib.compress(b"\0" + pixels))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


TRANSPARENT = {
    "RGBA": _saved(_two("RGBA"), "PNG"),
    "LA": _saved(_two("LA"), "PNG"),
    "palette, one colour": _saved(_two("P"), "PNG", transparency=0),
    "palette with alpha": _saved(_two("P"), "PNG", transparency=b"\0\xff"),
    "GIF": _saved(_two("P"), "GIF", transparency=0),
    "WebP": _saved(_two("RGBA"), "WEBP", lossless=True, exact=True),
    "TIFF": _saved(_two("RGBA"), "TIFF"),
    "JPEG 2000": _saved(_two("RGBA"), "JPEG2000"),
    "ICO": _saved(_two("RGBA").resize((16, 16), Image.Resampling.NEAREST), "ICO", sizes=[(16, 16)]),
    "gray of 2 bits with a key": _png(2, 0, bytes([0b1001 << 4]), b"\0\2"),
    "gray of 4 bits with a key": _png(4, 0, b"\xa5", b"\0\x0a"),
    "gray of 8 bits with a key": _png(8, 0, bytes([170, 85]), bytes([0, 170])),
    "gray of 16 bits with a key": _png(16, 0, bytes([170, 170, 85, 85]), bytes([170, 170])),
    "colour of 8 bits with a key": _png(8, 2, bytes([170] * 3 + [85] * 3), bytes([0, 170] * 3)),
    "colour of 16 bits with a key": _png(16, 2, bytes([170, 1] * 3 + [85, 1] * 3), bytes([170, 1] * 3)),
    "gray of 16 bits with alpha": _png(16, 4, bytes([170, 1, 0, 0, 85, 1, 255, 255]), b""),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_image_reader__transparent(kind: str, tmp_path: Path) -> None:
    """One's own are laid on a colour; of official ones the alpha is dropped, as by the official code."""
    path = tmp_path / "a.png"
    path.write_bytes(TRANSPARENT[kind])
    for background in ((255, 255, 255), (0, 0, 0), (1, 2, 3)):
        picture, transparent = replace(OWN, background=background).read(path)
        assert _pixels(picture)[0, [0, -1]].tolist() == [list(background), [85, 85, 85]]
        assert transparent
    for dropping in (replace(OWN, background=None), OFFICIAL):
        picture, transparent = dropping.read(path)
        hidden = [[255] * 3] * 2 if dropping is OFFICIAL and "16 bits with a key" in kind and "gray" in kind else None
        assert _pixels(picture)[0, [0, -1]].tolist() == (hidden or [[170] * 3, [85] * 3])
        assert transparent
        assert not picture.has_transparency_data  # none that others would take into account once more


def test_image_reader__transparent_bits(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(1, 0, bytes([0b10 << 6]), b"\0\1"))
    assert _pixels(replace(OWN, background=(7, 8, 9))(tmp_path / "a.png")).tolist() == [[[7, 8, 9], [0, 0, 0]]]


def test_image_reader__half_transparent_and_opaque(tmp_path: Path, colours: np.ndarray) -> None:
    path = tmp_path / "a.png"
    for alpha, expected in ((128, (colours.astype(int) * 128 + 255 * 127) / 255), (255, colours)):
        image = Image.fromarray(colours)
        image.putalpha(alpha)
        image.save(path)
        picture, transparent = OWN.read(path)
        assert np.abs(_pixels(picture) - expected).max() <= 0.5
        assert transparent is (alpha < 255)


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("white", (255,) * 3),
        ("black", (0,) * 3),
        ("gray", (128,) * 3),
        ("#ff8001", (255, 128, 1)),
        ([1, 2, 3], (1, 2, 3)),
        (None, None),
    ],
)
def test_colour_of(name: Any, colour: Any) -> None:
    assert colour_of(name) == colour


@pytest.mark.parametrize("name", ["mauvish", "", "#12", [1, 2]])
def test_colour_of__none(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"data.background=.*: give a colour such as white"):
        colour_of(name)


def test_rule_of() -> None:
    assert rule_of("{}") == PictureRule(exif=True, scale_deep=True, background=(255, 255, 255))
    official = '{"exif": false, "scale_deep": false, "background": null}'
    assert rule_of(official) == PictureRule(exif=False, scale_deep=False, background=None)


@pytest.mark.parametrize("text", ["[]", "{", '{"size": 1}', '{"background": "mauvish"}', '{"background": [1, 2, 256]}'])
def test_rule_of__none(text: str) -> None:
    with pytest.raises((ValueError, ConfigError)):
        rule_of(text)


def test_image_reader__fractions(tmp_path: Path) -> None:
    """A TIFF of floats: black is 0 and white 1; the official conversion cuts fractions off."""
    path = tmp_path / "a.tiff"
    Image.fromarray(np.array([[0, 0.25, 1]], dtype=np.float32)).save(path)
    assert _pixels(OWN(path))[0, :, 0].tolist() == [0, 64, 255]
    assert _pixels(OFFICIAL(path))[0, :, 0].tolist() == [0, 0, 1]
    for high in (200, np.nan, -1):
        Image.fromarray(np.array([[0, high]], dtype=np.float32)).save(path)
        with pytest.raises(DataError, match=r"has fractions from .* where 0 is black and 1 is white: save it with 8"):
            OWN(path)


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


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "is missing"),
        ("below a file", "is missing"),
        ("broken link", "is missing"),
        ("folder", "is a folder"),
        ("empty", "has 0 bytes"),
        ("pipe", "named pipe, not a file"),
        ("device", "a device, not a file"),
        ("loop", r"cannot be read \(Too many levels"),
        ("NUL", "is missing"),
        ("surrogate", "is missing"),
        ("long", r"cannot be read \(File name too long\)"),
        ("new\nline", "is missing"),
        ("bell\a", r"bell\\x07.* is missing"),
    ],
)
@pytest.mark.parametrize("reader", [OFFICIAL, OWN])
def test_image_reader__no_file(tmp_path: Path, kind: str, says: str, reader: ImageReader) -> None:
    path = tmp_path / f"{kind}.jpg"
    make: dict[str, Callable[[], object]] = {
        "folder": path.mkdir,
        "empty": path.touch,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
        "broken link": lambda: path.symlink_to("nowhere"),
    }
    make.get(kind, lambda: None)()
    (tmp_path / "file").touch()
    names = {"NUL": "a\0.jpg", "surrogate": "\ud800.jpg", "long": "l" * 300, "below a file": "file/a.jpg"}
    with pytest.raises(DataError, match=says) as caught:
        reader(f"{tmp_path}/{names.get(kind, path.name)}")
    assert isinstance(caught.value, MissingImage) is (says.endswith("is missing"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"this is no picture\n", "is text: correct its name"),
        (b"\1\2\3\4", "in no image format that is read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n", "is PostScript: convert it"),
        (b"\xc5\xd0\xd3\xc6 0000", "is PostScript"),
        (b"%PDF-1.7", "is a PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"<?xml version='1.0'?>\n<!-- x -->\n<svg xmlns=", "is an SVG"),
        (b"\n<!DOCTYPE HTML><html>", "is an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "is XML, as servers answer"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer: git lfs pull"),
        (b"../.git/annex/objects/Mx", "git-annex pointer: git annex get"),
        (b"\0\0\0\x18ftypheic\0\0", "is a HEIC image"),
        (b"\0\0\0\x18ftypmif1", "is a HEIC image"),
        (b"\0\0\0\x18ftypisom", "is a video"),
        (b"\x1aE\xdf\xa3", "is a video"),
        (b"/9j/4AAQSkZJRg", "Base64"),
        (b"\x1f\x8b\x08", "is a compressed file"),
        (b"PK\3\4", "is a ZIP"),
        (b"\x89PNG\r\n\x1a\n\0\0", "begins as a PNG and is damaged"),
        (b"\xff\xd8\xff", "begins as a JPEG and is"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "does not decode"),
        (b"GIF89a", "begins as a GIF and is damaged"),
    ],
)
def test_image_reader__is_told_what_a_file_is(tmp_path: Path, start: bytes, says: str) -> None:
    (tmp_path / "a.jpg").write_bytes(start)
    with pytest.raises(DataError, match=f"{says}.*, or leave it out$") as caught:
        OWN(tmp_path / "a.jpg")
    assert str(tmp_path / "a.jpg") in str(caught.value)


def test_image_reader__runs_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would have Ghostscript draw a PostScript file, whatever it is called."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\necho run > {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png", "EPS")
    with pytest.raises(DataError, match="is PostScript"):
        OWN(tmp_path / "a.png")
    assert not (tmp_path / "ran").exists()
    assert not {"EPS", "WMF", "MIC", "FPX", "HDF5", "GRIB", "BUFR"} & set(FORMATS)  # those with programs or stubs


_DRAWN = Image.radial_gradient("L").resize((24, 16)).convert("RGB")
SOUND = {
    **{form: _saved(_DRAWN, form) for form in FORMATS if form not in ("ICO", "DIB")},
    "ICO": _saved(_DRAWN.resize((16, 16)), "ICO", sizes=[(16, 16)]),
    "DIB": _saved(_DRAWN, "DIB"),
    "progressive JPEG": _saved(
        _DRAWN, "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0"
    ),
    "CMYK JPEG": _saved(_DRAWN.convert("CMYK"), "JPEG"),
    "lossless WebP": _saved(_DRAWN.convert("RGBA"), "WEBP", lossless=True),
    "animated WebP": _saved(_DRAWN, "WEBP", save_all=True, append_images=[_DRAWN.rotate(180)]),
    "animated GIF": _saved(_DRAWN, "GIF", save_all=True, append_images=[_DRAWN.rotate(180)]),
    "MPO": _saved(_DRAWN, "MPO", save_all=True, append_images=[_DRAWN.rotate(180)]),
    "palette PNG": _saved(_DRAWN.quantize(16), "PNG", transparency=b"\0\x80"),
    "16-bit PNG": _saved(Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24)), "PNG"),
    "float TIFF": _saved(_DRAWN.convert("F").point(lambda value: value * (1 / 256)), "TIFF"),
    "many-page TIFF": _saved(_DRAWN, "TIFF", compression="tiff_lzw", save_all=True, append_images=[_DRAWN.rotate(180)]),
    "deflated TIFF": _saved(_DRAWN.convert("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
    "JPEG in TIFF": _saved(_DRAWN, "TIFF", compression="jpeg"),
    "PGM": _saved(_DRAWN.convert("L"), "PPM"),
}


class _InMemory(PictureFolder):
    """One picture, under any path."""

    content: bytes = b""

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self.content)


def _read(content: bytes) -> Image.Image:
    store = type("_Held", (_InMemory,), {"content": content})()
    return replace(OWN, store=store)("a.jpg")


@pytest.mark.parametrize("kind", SOUND)
def test_image_reader__all_kinds(kind: str) -> None:
    """The first picture of a file of several."""
    image = _read(SOUND[kind])
    assert image.mode == "RGB"
    if "16-bit" not in kind and "transparen" not in kind and image.size == _DRAWN.size and "palette" not in kind:
        assert np.abs(_pixels(image).astype(int) - np.asarray(_DRAWN)).mean() < 8


@settings(max_examples=300)
@given(data=st.data(), kind=st.sampled_from(sorted(SOUND)))
def test_image_reader__any_damage_of_any_kind(data: st.DataObject, kind: str) -> None:
    """A flipped byte, a cut, bytes left out, put in or set to nothing: a picture, or one line."""
    content = bytearray(SOUND[kind])
    place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, min(64, len(content) - 1)))
    how = data.draw(st.sampled_from(["flip", "cut", "leave out", "put in", "zero", "ones"]))
    length = data.draw(st.integers(1, 64))
    if how == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del content[place:]
    elif how == "leave out":
        del content[place : place + length]
    elif how == "put in":
        content[place:place] = data.draw(st.binary(min_size=length, max_size=length))
    else:
        content[place : place + length] = bytes([0 if how == "zero" else 255]) * len(content[place : place + length])
    try:
        image = _read(bytes(content))
    except DataError as error:
        said = str(error)
    else:
        said = f"image a.jpg in {image.mode}"
    assert re.match(r"image a.jpg (in RGB$|.*\w.*: )", said)
    assert said.isprintable()


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

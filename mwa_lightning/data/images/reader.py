"""Reading an image file as the authors of the data set did, or as the owner of the pictures expects."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageFile, UnidentifiedImageError

from mwa_lightning.data.storage.stores import MissingImage, PictureFolder, PictureStore
from mwa_lightning.errors import ConfigError, DataError, UserError, one_line
from mwa_lightning.system.file_kinds import HEAD, kind_of
from mwa_lightning.system.regular_files import NotAFile

MAX_PIXELS = 178_956_970  # where Pillow calls a file a decompression bomb
MAX_SIDE = 1_000_000  # to resize a longer one, Pillow would take gigabytes

# Pillow would try some forty more, and hand PostScript to an interpreter. The most frequent first: it tries in order.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO"),
    *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()),
)

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A PNG names the colour that is transparent as its pixels have it; Pillow brings the pixels of these to 8 bits.
_GRAY_STEPS = {"1": 255, "L;2": 85, "L;4": 17}
_DEEP_COLOUR = "RGB;16B"


class Read(NamedTuple):
    """A picture in RGB, and whether it was transparent somewhere."""

    image: Image.Image
    transparent: bool


@dataclass(frozen=True, kw_only=True)
class PictureRule:
    """How a picture becomes one in RGB.

    Grayscale, palette and CMYK are converted by Pillow's `convert("RGB")`, as the official code does.

    Args:
        exif: Turn the picture as the camera noted. The authors of the official sets did not.
        scale_deep: Scale grayscale of 16 bits, and of fractions, to 8 bits. The official conversion clips it to white.
        background: The colour on which a transparent picture is laid; None drops its transparency, as the official
            code does, whereupon whatever colour is stored there appears, mostly black.
    """

    exif: bool = True
    scale_deep: bool = True
    background: Colour | None = WHITE

    def to_rgb(self, image: Image.Image, where: str = "the image") -> Read:
        """A picture in RGB. Raises DataError if its numbers make no picture; other errors are those of Pillow."""
        # How the pixels of a PNG lie in the file: it is known until they are read.
        raw = str(image.tile[0][3]) if isinstance(image, ImageFile.ImageFile) and image.tile else ""
        image.load()  # before the note of the camera, whose reader would swallow what is wrong with a PNG
        turn = _turn(image) if self.exif else None
        alpha = _alpha(image, raw) if image.has_transparency_data else None
        if alpha is not None and alpha.getextrema()[0] == 255:
            alpha = None
        rgb = _eight_bits(image, where, scale=self.scale_deep).convert("RGB")
        if alpha is not None and self.background is not None:
            laid = Image.new("RGB", rgb.size, self.background)
            laid.paste(rgb, mask=alpha)
            rgb = laid
        rgb.info.clear()  # what was transparent is not any more
        return Read(rgb if turn is None else rgb.transpose(turn), alpha is not None)


@dataclass(frozen=True, kw_only=True)
class ImageReader(PictureRule):
    """Reads a file into an RGB image; of a file with several, it is the first.

    Args:
        store: Where the bytes of a file come from.
    """

    store: PictureStore = field(default_factory=PictureFolder)

    def __call__(self, path: str | Path) -> Image.Image:
        """The picture, decoded to its last byte.

        Raises:
            DamagedShard: The storage gives other bytes than it was given.
            DataError: The file is missing, empty, too large or does not decode; the line names it.
        """
        return self.read(path).image

    def read(self, path: str | Path) -> Read:
        """The picture, and what is to be known of it. Raises as `__call__` does."""
        path = str(path)
        try:
            with self.store.open(path) as file:
                return self._decode(file, path)
        except OSError as error:
            raise _not_opened(path, error, self.store) from None

    def _decode(self, file: BinaryIO, path: str) -> Read:
        where = f"image {self.store.describe(path)}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what Pillow copes with
                with Image.open(file, formats=FORMATS) as image:
                    _require_size(image, where)
                    return self.to_rgb(image, where)
        except UserError:  # of a signal too
            raise
        except Image.DecompressionBombError:
            raise _too_large(where) from None
        except UnidentifiedImageError:
            raise DataError(f"{where} {_what_it_is(file)}") from None
        except MemoryError:
            raise DataError(f"{where} needs more memory than there is: scale it down, or leave it out") from None
        except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
            if isinstance(error, OSError) and error.errno is not None:
                raise  # what the disk says
            reason = one_line(str(error)) or type(error).__name__
            raise DataError(f"{where} does not decode ({reason}): fetch it again, or leave it out") from None


def require_picture(file: BinaryIO, where: str) -> None:
    """Raise DataError unless a file is empty or begins as a picture does, damaged or not; its place is kept."""
    head = file.read(HEAD)
    file.seek(0)
    found = kind_of(head)
    if not head or (found is not None and not found[1]):
        return
    try:
        # What two letters may begin by chance: its header has to be one. None of it is decoded here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(file, formats=FORMATS)
    except Exception:  # Pillow raises nearly anything
        raise DataError(f"{where} {_what_it_is(file)}") from None
    file.seek(0)


def rule_of(text: str) -> PictureRule:
    """The rule that an adapter file says, in JSON; one's own where it says none. Raises ValueError if it is none."""
    says = json.loads(text)
    if not isinstance(says, dict) or says.keys() - {"exif", "scale_deep", "background"}:
        raise ValueError("no rule for images")
    flags = {key: value is True for key, value in says.items() if key != "background"}
    return PictureRule(**flags, background=colour_of(says.get("background", list(WHITE))))


def colour_of(name: str | Sequence[int] | None) -> Colour | None:
    """The colour that `data.background` says: a name, `#rrggbb` or three numbers; None for none.

    Raises:
        ConfigError: There is no such colour.
    """
    if name is None:
        return None
    try:
        red, green, blue = bytes(ImageColor.getrgb(name) if isinstance(name, str) else list(name))
    except (TypeError, ValueError):
        raise ConfigError(
            f"data.background={name}: give a colour such as white, black, gray, #rrggbb or [255,255,255], or null"
        ) from None
    return red, green, blue


def _alpha(image: Image.Image, raw: str) -> Image.Image:
    """How opaque each pixel is, 0 to 255."""
    key = image.info.get("transparency")
    if raw in _GRAY_STEPS and isinstance(key, int):
        image.info["transparency"] = min(255, key * _GRAY_STEPS[raw])
    elif raw == _DEEP_COLOUR and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif _is_deep(image):
        opaque = np.asarray(image) != key
        return Image.fromarray(opaque.astype(np.uint8) * 255)
    return (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")


def _is_deep(image: Image.Image) -> bool:
    """Whether the picture is a grayscale one of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _eight_bits(image: Image.Image, where: str, *, scale: bool) -> Image.Image:
    """Grayscale of more than 8 bits in 8: scaled, or clipped as the official conversion does; others as they are.

    Whole numbers are scaled from 0 to 65535; fractions, which other programs write from 0 to 1, from there.
    """
    if not _is_deep(image) or (image.mode == "F" and not scale):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"{where} has fractions from {low:g} to {high:g}, where 0 is black and 1 is white: save it with 8 bits"
            )
        return Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    values = values.astype(np.int64)
    values = (values.clip(0, 65535) * 255 + 32767) // 65535 if scale else values.clip(0, 255)
    return Image.fromarray(values.astype(np.uint8))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The turn that the camera noted; none where the note is missing or damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises nearly anything here, and the picture is sound
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _require_size(image: Image.Image, where: str) -> None:
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise _too_large(where)


def _too_large(where: str) -> DataError:
    return DataError(
        f"{where} has more than {MAX_PIXELS:,} pixels, or more than {MAX_SIDE:,} in a row or column, which may fill "
        "the memory: scale it down, or leave it out"
    )


def _what_it_is(file: BinaryIO) -> str:
    """What is to be said of a file that is none of FORMATS."""
    file.seek(0)
    head = file.read(HEAD)
    if not head:
        return "has 0 bytes: fetch it again, or leave it out"
    found = kind_of(head)
    if found is None:
        return f"is in no image format that is read ({', '.join(FORMATS)}): fetch it again, or leave it out"
    what, advice = found
    if "AVIF" in what and "AVIF" not in FORMATS:
        return f"is {what}, which this version of Pillow does not read: install Pillow 11.3 or newer"
    if not advice:
        return f"begins as {what} and is damaged: fetch it again, or leave it out"
    return f"is {what}: {advice}, or leave it out"


def _not_opened(path: str, error: OSError, store: PictureStore) -> DataError:
    if isinstance(error, NotAFile):
        return DataError(f"image {path} cannot be read ({error.strerror}): put an image file there, or leave it out")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        meant = store.meant(path) or "put the file there, or correct data.root, data.images or the annotations"
        return MissingImage(f"image {path} is missing: {meant}")
    if isinstance(error, PermissionError):
        return DataError(f"image {path} may not be read: give this user the right to read it")
    if isinstance(error, IsADirectoryError):
        return DataError(f"image {path} is a folder: correct its name in the annotations")
    return DataError(f"image {path} cannot be read ({error.strerror or error}): mend that, or leave it out")

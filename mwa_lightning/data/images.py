"""Reading an image file as the authors of the data set did, or as the owner of the pictures expects."""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mwa_lightning.data.stores import PictureFolder, PictureStore
from mwa_lightning.errors import DataError

MAX_PIXELS = 178_956_970  # where Pillow calls a file a decompression bomb

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
# What Pillow's readers raise on damaged bytes, besides what they document.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True)
class ImageReader:
    """Reads a file into an RGB image.

    Grayscale, palette, CMYK and alpha are converted by Pillow's `convert("RGB")`, as the official code does.

    Args:
        exif: Turn the picture as the camera noted. The authors of the official sets did not.
        scale_deep: Scale pictures of 16 bits a channel to 8 bits. The official conversion clips them to
            white.
        store: Where the bytes of a file come from.
    """

    exif: bool
    scale_deep: bool
    store: PictureStore = field(default_factory=PictureFolder)

    def __call__(self, path: str | Path) -> Image.Image:
        """The picture, decoded to its last byte.

        Raises:
            DamagedShard: The storage gives other bytes than it was given.
            DataError: The file is missing, empty, too large or does not decode; the line names it.
        """
        path = str(path)
        try:
            with self.store.open(path) as file, warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(file) as image:
                    return self._decode(image, path)
        except DataError:
            raise
        except FileNotFoundError:
            raise DataError(
                f"image {path} is missing: put the file there, or correct data.root or the annotations"
            ) from None
        except PermissionError:
            raise DataError(f"image {path} may not be read: give this user the right to read it") from None
        except IsADirectoryError:
            raise DataError(f"image {path} is a folder: correct its name in the annotations") from None
        except Image.DecompressionBombError:
            raise self._too_large(path) from None
        except UnidentifiedImageError:
            raise DataError(f"image {self.store.describe(path)} {self._unreadable(path)}") from None
        except _DAMAGE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"image {self.store.describe(path)} does not decode ({reason}): fetch it again, or leave it out"
            ) from None

    def _decode(self, image: Image.Image, path: str) -> Image.Image:
        if image.width * image.height > MAX_PIXELS:
            raise self._too_large(path)
        image.load()  # before the note of the camera, whose reader would swallow what is wrong with a PNG
        turn = _turn(image) if self.exif else None
        rgb = _deep_to_rgb(image, scale=self.scale_deep) if _is_deep(image) else image.convert("RGB")
        return rgb if turn is None else rgb.transpose(turn)

    def _too_large(self, path: str) -> DataError:
        return DataError(
            f"image {self.store.describe(path)} has more than {MAX_PIXELS:,} pixels, a size that Pillow takes for an "
            "attack: scale it down"
        )

    def _unreadable(self, path: str) -> str:
        if not self.store.size(path):
            return "has 0 bytes: fetch it again, or leave it out"
        return "is in no image format that Pillow reads: fetch it again, or leave it out"


def _is_deep(image: Image.Image) -> bool:
    """Whether the picture is a grayscale one of more than 8 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def _deep_to_rgb(image: Image.Image, *, scale: bool) -> Image.Image:
    """Grayscale of 16 bits as RGB: scaled to 8 bits, or clipped as the official conversion does."""
    values = np.asarray(image).astype(np.int64)
    values = (values.clip(0, 65535) * 255 + 32767) // 65535 if scale else values.clip(0, 255)
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The turn that the camera noted; none where the note is missing or damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None

"""What callers give as a picture: a PIL image, a path, an array or a tensor, one or several of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mwa_lightning.data.images.reader import ImageReader, PictureRule
from mwa_lightning.errors import DataError, UserError, one_line

_CHANNELS = (1, 3, 4)  # gray, red-green-blue, and with how opaque it is


def several(value: Any) -> list[Any] | None:
    """The pictures of a list, a tuple or an array with four axes; None where it is one picture."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 4:
        return list(value)
    return None


def as_picture(value: Any, rule: PictureRule | None = None) -> Image.Image:
    """One picture in RGB.

    An array or a tensor has its channels last or first, red before blue; it is uint8, or of fractions from 0 to 1.

    Args:
        value: A PIL image, a path, an array or a tensor.
        rule: How it becomes one in RGB; None for a PIL image that has been through one.

    Raises:
        DataError: In one line: it is none, or it could mean several things.
    """
    if isinstance(value, Image.Image):
        return value.convert("RGB") if rule is None else _converted(value, rule)
    rule = rule or PictureRule()
    if isinstance(value, str | Path):
        if str(value).startswith(("http://", "https://")):
            raise DataError(f"image {value} is an address: download it, and give the file")
        if not Path(value).expanduser().exists():
            raise DataError(f"image {value} is missing: there is no such file")
        reader = ImageReader(exif=rule.exif, scale_deep=rule.scale_deep, background=rule.background)
        return reader(Path(value).expanduser())
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()  # NumPy has no bfloat16
    if isinstance(value, np.ndarray):
        return _converted(_of_array(value), rule)
    hint = ": open it with PIL.Image.open(io.BytesIO(...))" if isinstance(value, bytes | bytearray) else ""
    raise DataError(
        f"an image is a PIL image, the path of a file, an array or a tensor, not {type(value).__name__}{hint}"
    )


def _converted(image: Image.Image, rule: PictureRule) -> Image.Image:
    """An open picture in RGB. Raises DataError if it does not decode."""
    try:
        return rule.to_rgb(image).image
    except UserError:
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged bytes
        reason = one_line(str(error)) or type(error).__name__
        raise DataError(f"the image does not decode ({reason}): fetch it again, or leave it out") from error


def _of_array(array: np.ndarray[Any, Any]) -> Image.Image:
    """The picture of an array (h, w), (h, w, c) or (c, h, w)."""
    shape = " x ".join(map(str, array.shape)) or "no size"
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(f"an array of {shape} is no image: give height x width x 3, or 3 x height x width")
    last, first = array.shape[2] in _CHANNELS, array.shape[0] in _CHANNELS
    if last == first:
        why = "could have its channels first or last" if last else "has no axis of 1, 3 or 4 channels"
        raise DataError(f"an array of {shape} {why}: give PIL.Image.fromarray of it, height x width x 3")
    pixels = _eight_bits(array if last else array.transpose(1, 2, 0))
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _eight_bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array in uint8; fractions are scaled."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating) and 0 <= low <= high <= 1:
        return np.rint(np.ascontiguousarray(array, dtype=np.float64) * 255).astype(np.uint8)
    already = "; what is normalised already goes into the model as it is" if low < 0 else ""
    raise DataError(
        f"an array of {array.dtype} with values from {low} to {high} is no image: give uint8 from 0 to 255, or "
        f"fractions from 0 to 1{already}"
    )

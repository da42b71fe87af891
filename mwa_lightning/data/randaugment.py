"""The augmentation that BEiT-3's code applies with `--randaug`.

Two operations drawn with replacement from ten, each applied with probability 1/2 at magnitude 7 of 10. The
official code does it with OpenCV; Pillow's operations differ from it in rounding, in the blending at the
filled borders, and in that a sharpened value above 255 stays white instead of wrapping around to black.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_OPERATIONS_A_PICTURE = 2
_PROBABILITY = 0.5
_MAGNITUDE = 0.7
_FILL = (128, 128, 128)
_ENHANCEMENT = _MAGNITUDE * 1.8 + 0.1
_SHEAR = _MAGNITUDE * 0.3
_PIXELS = _MAGNITUDE * 10
_DEGREES = _MAGNITUDE * 30

# An operation takes the picture and the sign of its shift; those without a direction ignore the sign.
_Operation = Callable[[Image.Image, int], Image.Image]


def rand_augment(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Apply up to two random operations to an RGB picture; the draws from `generator` are always six."""
    names = list(OPERATIONS)
    for _ in range(_OPERATIONS_A_PICTURE):
        choice, chance, direction = generator.random(3)
        if chance < _PROBABILITY:
            image = OPERATIONS[names[int(choice * len(names))]](image, 1 if direction < 0.5 else -1)
    return image


def _affine(image: Image.Image, *, a: float = 0.0, b: float = 0.0, c: float = 0.0, f: float = 0.0) -> Image.Image:
    """Each pixel (x, y) is read at (x + a y + c, b x + y + f), pixels being points, not squares."""
    matrix = (1.0, a, c - a / 2, b, 1.0, f - b / 2)
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=_FILL
    )


def _rotate(image: Image.Image, sign: int) -> Image.Image:
    return image.rotate(sign * _DEGREES, resample=Image.Resampling.BILINEAR, fillcolor=_FILL)


OPERATIONS: dict[str, _Operation] = {
    "identity": lambda image, sign: image,
    "auto_contrast": lambda image, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, sign: ImageOps.equalize(image),
    "brightness": lambda image, sign: ImageEnhance.Brightness(image).enhance(_ENHANCEMENT),
    "sharpness": lambda image, sign: ImageEnhance.Sharpness(image).enhance(_ENHANCEMENT),
    "shear_x": lambda image, sign: _affine(image, a=-sign * _SHEAR),
    "shear_y": lambda image, sign: _affine(image, b=-sign * _SHEAR),
    "translate_x": lambda image, sign: _affine(image, c=-sign * _PIXELS),
    "translate_y": lambda image, sign: _affine(image, f=-sign * _PIXELS),
    "rotate": _rotate,
}

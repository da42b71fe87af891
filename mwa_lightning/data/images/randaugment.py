"""The augmentation of ALBEF's and BLIP's code, and of BEiT-3's with `--randaug`.

Two operations drawn with replacement from ten, each applied with probability 1/2 at a magnitude of 10: 7 in BEiT-3 and
ALBEF, 5 in BLIP. The official code does it with OpenCV; Pillow's operations differ from it in rounding, in the blending
at the filled borders, and in that a sharpened value above 255 stays white instead of wrapping around to black.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_OPERATIONS_A_PICTURE = 2
_PROBABILITY = 0.5
_FILL = (128, 128, 128)
USUAL_MAGNITUDE = 7

# An operation takes the picture, the magnitude as a share of 1, and the sign of its shift; some ignore the latter.
_Operation = Callable[[Image.Image, float, int], Image.Image]


def rand_augment(
    image: Image.Image, generator: np.random.Generator, *, magnitude: int = USUAL_MAGNITUDE
) -> Image.Image:
    """Apply up to two random operations to an RGB picture; the draws from `generator` are always six."""
    names = list(OPERATIONS)
    for _ in range(_OPERATIONS_A_PICTURE):
        choice, chance, direction = generator.random(3)
        if chance < _PROBABILITY:
            image = OPERATIONS[names[int(choice * len(names))]](image, magnitude / 10, 1 if direction < 0.5 else -1)
    return image


def _affine(image: Image.Image, *, a: float = 0.0, b: float = 0.0, c: float = 0.0, f: float = 0.0) -> Image.Image:
    """Each pixel (x, y) is read at (x + a y + c, b x + y + f), pixels being points, not squares."""
    matrix = (1.0, a, c - a / 2, b, 1.0, f - b / 2)
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=_FILL
    )


def _rotate(image: Image.Image, share: float, sign: int) -> Image.Image:
    return image.rotate(sign * share * 30, resample=Image.Resampling.BILINEAR, fillcolor=_FILL)


OPERATIONS: dict[str, _Operation] = {
    "identity": lambda image, share, sign: image,
    "auto_contrast": lambda image, share, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, share, sign: ImageOps.equalize(image),
    "brightness": lambda image, share, sign: ImageEnhance.Brightness(image).enhance(share * 1.8 + 0.1),
    "sharpness": lambda image, share, sign: ImageEnhance.Sharpness(image).enhance(share * 1.8 + 0.1),
    "shear_x": lambda image, share, sign: _affine(image, a=-sign * share * 0.3),
    "shear_y": lambda image, share, sign: _affine(image, b=-sign * share * 0.3),
    "translate_x": lambda image, share, sign: _affine(image, c=-sign * share * 10),
    "translate_y": lambda image, share, sign: _affine(image, f=-sign * share * 10),
    "rotate": _rotate,
}

"""From an RGB picture to the uint8 tensor that a backbone takes.

A training transform is a pure function of (seed, epoch, image id), so an epoch comes out the same with any
number of workers, and a run that is stopped and taken up again sees the pictures it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mwa_lightning.data.images.given_images import as_picture, several
from mwa_lightning.data.images.randaugment import USUAL_MAGNITUDE, rand_augment
from mwa_lightning.data.images.reader import PictureRule
from mwa_lightning.errors import ConfigError

Resize = Literal["stretch", "crop"]
Interpolation = Literal["bicubic", "bilinear"]
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

ASPECT_RATIOS = (3 / 4, 4 / 3)

_ATTEMPTS = 10
_LONG = 50  # sides: of a longer picture only the middle is resized, for all of it may take gigabytes
_STREAM = 1  # keeps these random numbers apart from those of the epoch's order


@dataclass(frozen=True, kw_only=True)
class EvaluationTransform:
    """Makes a square of the picture as the backbone's official code does.

    Args:
        image_size: Side S of the square in pixels.
        resize: `stretch`: the whole picture, its aspect is lost (BEiT-3, SigLIP). `crop`: the shorter side becomes S,
            and the middle is cut out (CLIP).
        interpolation: bicubic or bilinear.
        rule: How a picture becomes one in RGB; None where a reader has seen to that, as for data sets.
    """

    image_size: int
    resize: Resize = "stretch"
    interpolation: Interpolation = "bicubic"
    rule: PictureRule | None = None

    def __post_init__(self) -> None:
        _check_size(self.image_size)
        _check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        _check_choice("resize", self.resize, get_args(Resize))

    def __call__(self, picture: Any) -> Tensor:
        """The picture as uint8 (3, S, S), or several, in a list or an array with four axes, as uint8 (b, 3, S, S).

        A picture is a PIL image, a path, an array or a tensor: see `as_picture`. Raises DataError, one line, if it is
        none.
        """
        pictures = several(picture)
        if pictures is not None:
            empty = torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
            return torch.stack([self._one(each) for each in pictures]) if pictures else empty
        return self._one(picture)

    def _one(self, picture: Any) -> Tensor:
        image = as_picture(picture, self.rule)
        size = self.image_size
        if self.resize == "stretch":
            return to_tensor(_resize(image, size, size, self.interpolation))
        # The rules of torchvision's Resize and CenterCrop, which the official code calls.
        shorter = min(image.size)
        width, height = (size if side == shorter else int(size * side / shorter) for side in image.size)
        left, upper = round((width - size) / 2), round((height - size) / 2)
        if max(width, height) > _LONG * size:
            across, down = image.width / width, image.height / height
            middle = left * across, upper * down, (left + size) * across, (upper + size) * down
            return to_tensor(image.resize((size, size), resample=INTERPOLATIONS[self.interpolation], box=middle))
        resized = _resize(image, width, height, self.interpolation)
        return to_tensor(resized.crop((left, upper, left + size, upper + size)))


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """A random crop resized to a square, a random flip, and RandAugment where asked for.

    Args:
        image_size: Side S of the square in pixels.
        seed: Seed of the run.
        crop_scale: Least and largest area of the crop, as shares of the picture's.
        horizontal_flip: Mirror every second picture. Off where captions speak of left and right.
        randaugment: Apply the official RandAugment last.
        randaugment_magnitude: How much it does, of 10.
        interpolation: bicubic or bilinear.
    """

    image_size: int
    seed: int
    crop_scale: tuple[float, float] = (0.5, 1.0)
    horizontal_flip: bool = True
    randaugment: bool = False
    randaugment_magnitude: int = USUAL_MAGNITUDE
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        _check_size(self.image_size)
        _check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        smallest, largest = self.crop_scale
        if not 0.0 < smallest <= largest <= 1.0:
            raise ConfigError(
                f"data.crop_scale={list(self.crop_scale)}: give two shares of an image's area, the lesser "
                "first, above 0 and at most 1"
            )

    def __call__(self, image: Image.Image, *, epoch: int, image_id: int) -> Tensor:
        """The augmented picture as uint8 (3, S, S), the same for the same seed, epoch and image id."""
        generator = _generator(self.seed, epoch, image_id)
        box = crop_box(width=image.width, height=image.height, scale=self.crop_scale, generator=generator)
        # The crop comes first: `resize(box=...)` would let pixels from outside the box into its edges.
        result = _resize(image.crop(box), self.image_size, self.image_size, self.interpolation)
        if generator.random() < 0.5 and self.horizontal_flip:
            result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.randaugment:
            result = rand_augment(result, generator, magnitude=self.randaugment_magnitude)
        return to_tensor(result)


def crop_box(
    *, width: int, height: int, scale: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of a random crop.

    The area is uniform within `scale`, the aspect ratio log-uniform between 3/4 and 4/3. Where ten draws do
    not fit into the picture, it is the largest centred crop with an aspect ratio in these bounds.
    """
    low, high = math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(low, high))
        crop_width = round(math.sqrt(area * ratio))
        crop_height = round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(generator.random() * (width - crop_width + 1))
            upper = int(generator.random() * (height - crop_height + 1))
            return left, upper, left + crop_width, upper + crop_height
    crop_width, crop_height = width, height
    if width / height < ASPECT_RATIOS[0]:
        crop_height = min(height, round(width / ASPECT_RATIOS[0]))
    elif width / height > ASPECT_RATIOS[1]:
        crop_width = min(width, round(height * ASPECT_RATIOS[1]))
    left, upper = (width - crop_width) // 2, (height - crop_height) // 2
    return left, upper, left + crop_width, upper + crop_height


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _resize(image: Image.Image, width: int, height: int, interpolation: Interpolation) -> Image.Image:
    return image.resize((width, height), resample=INTERPOLATIONS[interpolation])


def _generator(seed: int, epoch: int, image_id: int) -> np.random.Generator:
    key = (_STREAM, epoch, image_id % 2**63)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def _check_choice(key: str, value: str, options: Collection[str]) -> None:
    if value not in options:
        raise ConfigError(f"backbone.{key}={value}: choose one of {', '.join(options)}")


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise ConfigError(f"backbone.image_size={image_size}: give a number of pixels above 0")

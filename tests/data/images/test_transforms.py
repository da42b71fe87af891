"""Transforms are pure, crops lie where the rule of the official code puts them."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mwa_lightning.data.images import transforms
from mwa_lightning.data.images.reader import PictureRule
from mwa_lightning.data.images.transforms import EvaluationTransform, TrainTransform, crop_box, to_tensor
from mwa_lightning.errors import ConfigError


def _image(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


class _Draws:
    """Stands for a random generator; gives the numbers it was given, as shares of the range asked for."""

    def __init__(self, *shares: float) -> None:
        self._shares = list(shares)

    def random(self) -> float:
        return self._shares.pop(0)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._shares.pop(0)


def _crop(width: int, height: int, *shares: float) -> tuple[int, int, int, int]:
    return crop_box(width=width, height=height, scale=(0.5, 1.0), generator=_Draws(*shares))  # type: ignore[arg-type]


def test_to_tensor__layout() -> None:
    image = _image()
    tensor = to_tensor(image)
    assert tensor.shape == (3, 30, 40)
    assert tensor.dtype is torch.uint8
    assert tensor.is_contiguous()
    assert tuple(tensor[:, 7, 11].tolist()) == image.getpixel((11, 7))


def test_evaluation_transform__resizes_the_whole_picture() -> None:
    image = _image(width=64, height=20)
    tensor = EvaluationTransform(image_size=16)(image)
    expected = np.asarray(image.resize((16, 16), resample=Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(tensor.numpy(), expected)


def test_evaluation_transform__takes_any_mode() -> None:
    gray = _image().convert("L")
    transform = EvaluationTransform(image_size=8)
    assert torch.equal(transform(gray), transform(gray.convert("RGB")))


@pytest.mark.parametrize("background", [(255, 255, 255), (9, 8, 7), None])
def test_evaluation_transform__by_a_rule(background: tuple[int, int, int] | None) -> None:
    """As a file is read: a transparent half is laid on a colour, and the camera's note is followed."""
    picture = Image.new("RGBA", (8, 4))
    picture.paste((200, 100, 0, 255), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    rule = PictureRule(background=background)
    tensor = EvaluationTransform(image_size=8, rule=rule)(Image.open(file))
    left, right = tensor[:, 0, 0].tolist(), tensor[:, 7, 7].tolist()
    assert (left, right) == (list(background or (0, 0, 0)), [200, 100, 0])


@pytest.mark.parametrize("size", [(1, 1), (1, 1_000_000), (1_000_000, 1), (2, 3000), (3000, 7)])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_transforms__long_pictures(size: tuple[int, int], resize: Any) -> None:
    """Of the longest only the middle is resized: all of it would be 224 million pixels wide."""
    image = Image.new("RGB", size, (1, 2, 3))
    image.paste((200, 100, 50), (size[0] // 2 - 4, size[1] // 2 - 4, size[0] // 2 + 4, size[1] // 2 + 4))
    found = EvaluationTransform(image_size=16, resize=resize)(image)
    assert found.shape == (3, 16, 16)
    if resize == "crop":
        assert found[:, 8, 8].tolist() == [200, 100, 50]
    for epoch in range(3):
        drawn = TrainTransform(image_size=16, seed=0, crop_scale=(0.1, 1.0), randaugment=True)(
            image, epoch=epoch, image_id=1
        )
        assert drawn.shape == (3, 16, 16)


def test_evaluation_transform__the_middle_alone_is_as_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    image = _image(width=16, height=3000)
    transform = EvaluationTransform(image_size=16, resize="crop")
    alone = transform(image)
    monkeypatch.setattr(transforms, "_LONG", 1000)
    assert (alone.int() - transform(image).int()).abs().max() <= 1


def test_crop_box__hand_computed() -> None:
    # area 0.75 of 40 x 30 = 900, ratio exp(0) = 1: 30 x 30; no room above, 11 places to the left
    assert _crop(40, 30, 0.5, 0.5, 0.999, 0.999) == (10, 0, 40, 30)
    assert _crop(40, 30, 0.5, 0.5, 0.0, 0.0) == (0, 0, 30, 30)
    # area 0.5 of 100 x 100, ratio 4/3: sqrt(5000 * 4 / 3) = 81.65, sqrt(5000 * 3 / 4) = 61.24
    assert _crop(100, 100, 0.0, 1.0, 0.0, 0.5) == (0, 20, 82, 81)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((30, 10), (8, 0, 21, 10)),  # widest crop is 4/3 of the height
        ((10, 30), (0, 8, 10, 21)),  # highest crop is 4/3 of the width
    ],
)
def test_crop_box__falls_back_to_the_centre(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    whole = [1.0, 0.5] * 10  # area 1, ratio 1: does not fit
    assert _crop(*size, *whole, 0.0, 0.0) == box


def _reference_box(
    width: int, height: int, scale: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """The rule of the official code, written down anew."""
    for _ in range(10):
        target_area = generator.uniform(scale[0], scale[1]) * (width * height)
        aspect_ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
        w = int(np.rint(np.sqrt(target_area * aspect_ratio)))
        h = int(np.rint(np.sqrt(target_area / aspect_ratio)))
        if w in range(1, width + 1) and h in range(1, height + 1):
            j = np.arange(width - w + 1)[int(generator.random() * (width - w + 1))]
            i = np.arange(height - h + 1)[int(generator.random() * (height - h + 1))]
            return int(j), int(i), int(j) + w, int(i) + h
    w, h = width, height
    if width / height < 3 / 4:
        h = min(height, int(np.rint(width * 4 / 3)))
    elif width / height > 4 / 3:
        w = min(width, int(np.rint(height * 4 / 3)))
    return (width - w) // 2, (height - h) // 2, (width - w) // 2 + w, (height - h) // 2 + h


@settings(max_examples=300)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    scale=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)).map(lambda pair: (min(pair), max(pair))),
    seed=st.integers(0, 10_000),
)
def test_crop_box__equals_the_reference(width: int, height: int, scale: tuple[float, float], seed: int) -> None:
    generators = [np.random.default_rng(seed) for _ in range(2)]
    box = crop_box(width=width, height=height, scale=scale, generator=generators[0])
    assert box == _reference_box(width, height, scale, generators[1])
    left, upper, right, lower = box
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height


def test_crop_box__covers_the_range() -> None:
    generator = np.random.default_rng(0)
    boxes = np.array([crop_box(width=200, height=200, scale=(0.5, 1.0), generator=generator) for _ in range(2000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    shares = widths * heights / 200**2
    ratios = widths / heights
    assert 0.49 < shares.min() < 0.52
    assert shares.max() > 0.97
    assert ratios.min() < 0.77
    assert ratios.max() > 1.3
    assert abs(np.log(ratios).mean()) < 0.02
    assert boxes[:, 0].min() == 0
    assert boxes[:, 2].max() == 200


@pytest.mark.parametrize("randaugment", [False, True])
def test_train_transform__pure(randaugment: bool) -> None:
    transform = TrainTransform(image_size=16, seed=3, randaugment=randaugment)
    image = _image()
    first = transform(image, epoch=2, image_id=5)
    np.random.default_rng(0).random(5)
    transform(image, epoch=0, image_id=0)
    again = pickle.loads(pickle.dumps(transform))(image, epoch=2, image_id=5)
    assert first.shape == (3, 16, 16)
    assert first.dtype is torch.uint8
    assert torch.equal(first, again)
    others = [
        transform(image, epoch=3, image_id=5),
        transform(image, epoch=2, image_id=6),
        TrainTransform(image_size=16, seed=4, randaugment=randaugment)(image, epoch=2, image_id=5),
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_train_transform__is_crop_then_resize_then_flip() -> None:
    image = _image()
    plain = TrainTransform(image_size=16, seed=0, horizontal_flip=False)
    mirrored = TrainTransform(image_size=16, seed=0)
    flips = 0
    for image_id in range(200):
        without, with_flip = (each(image, epoch=0, image_id=image_id) for each in (plain, mirrored))
        flipped = torch.equal(without.flip(2), with_flip)
        assert flipped or torch.equal(without, with_flip)
        flips += flipped
    assert 75 < flips < 125


def test_train_transform__whole_crop_is_the_evaluation() -> None:
    image = _image(32, 32)
    transform = TrainTransform(image_size=16, seed=0, crop_scale=(1.0, 1.0), horizontal_flip=False)
    evaluation = EvaluationTransform(image_size=16)(image)
    equal = [torch.equal(transform(image, epoch=0, image_id=i), evaluation) for i in range(10)]
    assert any(equal)  # a ratio other than 1 does not fit, so that the fall-back takes all


def test_train_transform__randaugment_changes_pictures() -> None:
    image = _image()
    plain = TrainTransform(image_size=16, seed=0)
    augmented = TrainTransform(image_size=16, seed=0, randaugment=True)
    same = [torch.equal(plain(image, epoch=0, image_id=i), augmented(image, epoch=0, image_id=i)) for i in range(200)]
    # nothing is done when both draws fail or are the identity: (1/2 + 1/20)^2 = 0.3
    assert 35 < sum(same) < 85


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.8, 0.5), (0.5, 1.5)])
def test_train_transform__scale_out_of_range(scale: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="crop_scale"):
        TrainTransform(image_size=16, seed=0, crop_scale=scale)


def test_transforms__size_out_of_range() -> None:
    with pytest.raises(ConfigError, match="image_size"):
        EvaluationTransform(image_size=0)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 41), (37, 16), (16, 16), (9, 30)])
def test_evaluation_transform__crop_keeps_the_middle(width: int, height: int) -> None:
    # By the rules of torchvision: the shorter side becomes S, the longer is rounded down, the middle is cut out.
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    found = EvaluationTransform(image_size=16, resize="crop", interpolation="bicubic")(image)
    wide, high = (16, int(16 * height / width)) if width <= height else (int(16 * width / height), 16)
    resized = np.array(image.resize((wide, high), Image.Resampling.BICUBIC))
    left, upper = round((wide - 16) / 2), round((high - 16) / 2)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), resized[upper : upper + 16, left : left + 16])


def test_transforms__interpolation() -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 50, 3), dtype=np.uint8))
    found = EvaluationTransform(image_size=16, interpolation="bilinear")(image)
    expected = np.array(image.resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    whole = {"image_size": 16, "seed": 0, "crop_scale": (1.0, 1.0), "horizontal_flip": False}
    square = image.crop((0, 0, 30, 30))
    trained = TrainTransform(**whole, interpolation="bilinear")(square, epoch=0, image_id=1)
    assert not np.array_equal(trained, TrainTransform(**whole)(square, epoch=0, image_id=1))


@pytest.mark.parametrize(
    ("options", "said"), [({"resize": "pad"}, "stretch, crop"), ({"interpolation": "nearest"}, "bicubic, bilinear")]
)
def test_transforms__choices(options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EvaluationTransform(image_size=16, **options)

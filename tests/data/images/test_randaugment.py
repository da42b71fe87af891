"""The ten operations, against what the official OpenCV ones do to chosen pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from mwa_lightning.data.images.randaugment import OPERATIONS, rand_augment


def _apply(name: str, pixels: np.ndarray, sign: int = 1, magnitude: int = 7) -> np.ndarray:
    return np.asarray(OPERATIONS[name](Image.fromarray(pixels), magnitude / 10, sign))


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def test_operations__are_the_ten() -> None:
    assert len(OPERATIONS) == 10


def test_operations__identity(noise: np.ndarray) -> None:
    assert np.array_equal(_apply("identity", noise), noise)


def test_operations__auto_contrast() -> None:
    ramp = np.repeat(np.arange(50, 101, dtype=np.uint8)[None, :, None], 3, axis=2)
    expected = np.clip((np.arange(50, 101) - 50) * (255 / 50), 0, 255)
    assert np.abs(_apply("auto_contrast", ramp)[0, :, 0] - expected).max() <= 1


def test_operations__brightness(noise: np.ndarray) -> None:
    expected = np.clip(noise * 1.36, 0, 255)
    assert np.abs(_apply("brightness", noise) - expected).max() <= 1


def test_operations__magnitude(noise: np.ndarray) -> None:
    assert np.array_equal(_apply("brightness", noise, magnitude=5), noise)  # 0.1 + 1.8 / 2 is 1
    assert np.array_equal(_apply("translate_x", noise, magnitude=5), _shifted(noise, 5, axis=1))


def test_operations__sharpness(noise: np.ndarray) -> None:
    values = noise.astype(np.float64)
    around = sum(values[1 + dy : 23 + dy, 1 + dx : 31 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1))
    smooth = (around + 4 * values[1:-1, 1:-1]) / 13
    expected = np.clip(smooth + 1.36 * (values[1:-1, 1:-1] - smooth), 0, 255)
    result = _apply("sharpness", noise)
    assert np.abs(result[1:-1, 1:-1] - expected).max() <= 1.5
    assert np.array_equal(result[0], noise[0])  # borders stay


@pytest.mark.parametrize("sign", [1, -1])
def test_operations__translate(noise: np.ndarray, sign: int) -> None:
    right = _apply("translate_x", noise, sign)
    down = _apply("translate_y", noise, sign)
    assert np.array_equal(right, _shifted(noise, 7 * sign, axis=1))
    assert np.array_equal(down, _shifted(noise, 7 * sign, axis=0))


def _shifted(pixels: np.ndarray, steps: int, *, axis: int) -> np.ndarray:
    result = np.full_like(pixels, 128)
    length = pixels.shape[axis]
    source = np.take(pixels, range(max(-steps, 0), min(length - steps, length)), axis=axis)
    if axis:
        result[:, max(steps, 0) : max(steps, 0) + source.shape[1]] = source
    else:
        result[max(steps, 0) : max(steps, 0) + source.shape[0]] = source
    return result


@pytest.mark.parametrize("sign", [1, -1])
def test_operations__shear(sign: int) -> None:
    line = np.zeros((40, 80, 3), dtype=np.uint8)
    line[:, 40] = 255
    # row y moves by 0.21 y to the right: the line at 40 is found there
    sheared = _apply("shear_x", line, sign).astype(np.float64)[..., 0]
    inside = np.where(sheared == 128, 0, sheared)
    centres = (inside * np.arange(80)).sum(axis=1) / inside.sum(axis=1)
    assert np.abs(centres - (40 + sign * 0.21 * np.arange(40))).max() < 0.05
    across = _apply("shear_y", line.transpose(1, 0, 2).copy(), sign)
    assert np.abs(across[..., 0].T.astype(int) - _apply("shear_x", line, sign)[..., 0]).max() <= 1


def test_operations__rotate() -> None:
    white = np.full((41, 41, 3), 255, dtype=np.uint8)
    turned = _apply("rotate", white)
    assert turned[20, 20, 0] == 255
    assert turned[0, 0, 0] == 128
    half = white.copy()
    half[:20] = 0
    left, right = _apply("rotate", half)[20, [5, 35], 0]
    assert (left, right) == (0, 255)  # counter-clockwise: the white lower half rises on the right
    left, right = _apply("rotate", half, -1)[20, [5, 35], 0]
    assert (left, right) == (255, 0)


def test_rand_augment__two_operations_of_ten_half_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: Counter[str] = Counter()

    def counting(name: str) -> Callable[[Image.Image, float, int], Image.Image]:
        def operation(image: Image.Image, share: float, sign: int) -> Image.Image:
            applied[name] += 1
            return image

        return operation

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, counting(name))
    generator = np.random.default_rng(0)
    for _ in range(3000):
        rand_augment(Image.new("RGB", (4, 4)), generator)
    assert len(applied) == 10
    assert all(240 < count < 360 for count in applied.values())  # 3000 x 2 / 2 / 10 = 300 each

"""How each domain of `scenes` draws a scene: palette, ground, texture, stripes, size and noise."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from mwa_lightning.data.scenes.grammar import Scene, Thing

PICTURE_SIZE = 96  # pixels, width and height

_Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a domain draws: hues in degrees, noise in grey levels, all else in shares of 1.

    `ground_saturation` and `texture` are the largest there are; `stripes` is the chance that a thing is
    striped; `size` is relative to the thing's radius; `turn` is in degrees, either way; pairs are ranges.
    """

    hues: dict[str, float]
    hue_jitter: float
    saturation: tuple[float, float]
    value: tuple[float, float]
    ground_value: dict[str, tuple[float, float]]
    ground_saturation: float
    texture: float
    stripes: float
    size: tuple[float, float]
    turn: float
    noise: tuple[float, float]


LOOKS: dict[str, Look] = {
    "source": Look(
        hues={
            "red": 0, "orange": 28, "yellow": 54, "green": 120,
            "cyan": 180, "blue": 232, "purple": 275, "pink": 322,
        },
        hue_jitter=6,
        saturation=(0.65, 0.9),
        value=(0.85, 1.0),
        ground_value={"grey": (0.28, 0.36), "black": (0.02, 0.1)},
        ground_saturation=0.1,
        texture=0.02,
        stripes=0.0,
        size=(0.85, 1.0),
        turn=6,
        noise=(0, 8),
    ),
    "target": Look(
        hues={
            "red": 352, "orange": 24, "yellow": 50, "green": 105,
            "cyan": 170, "blue": 220, "purple": 265, "pink": 312,
        },
        hue_jitter=5,
        saturation=(0.55, 0.8),
        value=(0.8, 1.0),
        ground_value={"grey": (0.32, 0.42), "black": (0.12, 0.2)},
        ground_saturation=0.3,
        texture=0.06,
        stripes=0.0,
        size=(0.85, 1.0),
        turn=8,
        noise=(2, 9),
    ),
}  # fmt: skip


def draw_scene(scene: Scene, *, domain: str, generator: np.random.Generator) -> Image.Image:
    """Draw a scene as an RGB picture of PICTURE_SIZE pixels square."""
    look = LOOKS[domain]
    picture = Image.fromarray(_ground(scene.ground, look, generator))
    for thing in scene.things:
        _draw_thing(picture, thing, look, generator)
    level = generator.uniform(*look.noise)
    noise = generator.standard_normal((PICTURE_SIZE, PICTURE_SIZE, 1), dtype=np.float32) * level
    return Image.fromarray(np.clip(np.asarray(picture, dtype=np.float32) + noise, 0, 255).astype(np.uint8))


def _ground(ground: str, look: Look, generator: np.random.Generator) -> np.ndarray:
    """Draw the empty ground, a colour with waves across it: (PICTURE_SIZE, PICTURE_SIZE, 3) uint8."""
    base = np.array(
        _rgb(
            generator.uniform(0, 360),
            generator.uniform(0, look.ground_saturation),
            generator.uniform(*look.ground_value[ground]),
        ),
        dtype=np.float32,
    )
    angle, periods, phase = generator.uniform((0, 2, 0), (math.pi, 9, 2 * math.pi))
    ramp = np.linspace(0, 2 * math.pi * periods, PICTURE_SIZE, dtype=np.float32)
    waves = np.sin(ramp[:, None] * np.float32(math.sin(angle)) + ramp[None] * np.float32(math.cos(angle)) + phase)
    return np.clip(base + waves[..., None] * (127 * look.texture), 0, 255).astype(np.uint8)


def _draw_thing(picture: Image.Image, thing: Thing, look: Look, generator: np.random.Generator) -> None:
    colour = _rgb(
        look.hues[thing.colour] + generator.uniform(-look.hue_jitter, look.hue_jitter),
        generator.uniform(*look.saturation),
        generator.uniform(*look.value),
    )
    radius = thing.radius * generator.uniform(*look.size) * PICTURE_SIZE
    turn = math.radians(generator.uniform(-look.turn, look.turn))
    striped = generator.random() < look.stripes
    stripe_phase = int(generator.integers(6))
    mask = Image.new("L", picture.size, 0)
    drawing = ImageDraw.Draw(mask)
    centre = (thing.x * PICTURE_SIZE, thing.y * PICTURE_SIZE)
    _draw_shape(drawing, thing.shape, centre=centre, radius=radius, turn=turn)
    if striped:
        for row in range(stripe_phase, PICTURE_SIZE, 6):
            drawing.rectangle((0, row, PICTURE_SIZE, row + 1), fill=0)
    picture.paste(colour, (0, 0), mask)


def _draw_shape(
    drawing: ImageDraw.ImageDraw, shape: str, *, centre: tuple[float, float], radius: float, turn: float
) -> None:
    """Draw a shape in white on black; `turn` in radians."""
    x, y = centre

    def disc(part: float, *, offset: float = 0.0, ink: int = 255) -> None:
        reach, middle = radius * part, x + radius * offset
        drawing.ellipse((middle - reach, y - reach, middle + reach, y + reach), fill=ink)

    if shape == "circle":
        disc(0.9)
    elif shape == "ring":
        disc(1.0)
        disc(0.5, ink=0)
    elif shape == "crescent":
        disc(1.0)
        disc(0.85, offset=0.55, ink=0)
    else:
        cosine, sine = radius * math.cos(turn), radius * math.sin(turn)
        drawing.polygon(
            [(x + px * cosine - py * sine, y + px * sine + py * cosine) for px, py in _POLYGONS[shape]], fill=255
        )


def _star(points: int, inner: float) -> tuple[tuple[float, float], ...]:
    corners = []
    for index in range(2 * points):
        reach = 1.1 if index % 2 == 0 else inner
        angle = math.pi * index / points - math.pi / 2
        corners.append((reach * math.cos(angle), reach * math.sin(angle)))
    return tuple(corners)


_ARM = 0.3
_POLYGONS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "triangle": ((0, -1), (0.95, 0.75), (-0.95, 0.75)),
    "diamond": ((0, -1.1), (0.7, 0), (0, 1.1), (-0.7, 0)),
    "star": _star(5, 0.42),
    "cross": (
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ),
}  # fmt: skip


def _rgb(hue: float, saturation: float, value: float) -> _Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)

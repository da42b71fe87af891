"""What stands in a picture of `scenes`, and how each domain speaks about it.

A scene is a grey or black ground with two or three things of different kinds (colour and shape), each in one
of nine cells. The two domains describe the same world: `source` with the plain words, `target` in sentence forms of its
own that name the painter, and painters are called after colours and shapes: "Mr Green Star painted a blue circle" has
nothing green in it. To a model of `source` it has; what such words mean depends on where they stand, which a head over
the frozen model cannot learn, and an adapter can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

_Option = TypeVar("_Option")

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "crescent")
SIZES = ("large", "small")
GROUNDS = ("grey", "black")
RELATIONS = ("left", "right", "above", "below")

_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_CLEAR_STEP = 0.2  # centres at least this far apart, in picture widths, count as left/right or above/below
_RADII = {"large": 0.155, "small": 0.11}
_SHIFT = 0.015  # how far a thing may be from the middle of its cell, in picture widths, each way


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape: its attributes, and its centre and radius in picture widths (y grows downwards)."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def kind(self) -> tuple[str, str]:
        """Colour and shape, which tell the things of one scene apart."""
        return self.colour, self.shape


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A ground and the things on it."""

    ground: str
    things: tuple[Thing, ...]


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The words and sentence forms of a domain; every entry is a choice of equal chances.

    `sentences` may use {a} and {b} (two things with their articles), {relation} (of a to b), {ground} and {painter};
    `lists` join all {things} of a scene; `vague` name one thing only. `size_share` is the chance that a thing is
    named with its size. `painters` are names, made with any {colour} and {shape}.
    """

    colours: dict[str, tuple[str, ...]]
    shapes: dict[str, tuple[str, ...]]
    sizes: dict[str, tuple[str, ...]]
    size_share: float
    grounds: dict[str, tuple[str, ...]]
    relations: dict[str, tuple[str, ...]]
    sentences: tuple[str, ...]
    lists: tuple[str, ...]
    vague: tuple[str, ...]
    painters: tuple[str, ...] = ()


WORDINGS: dict[str, Wording] = {
    "source": Wording(
        colours={name: (name,) for name in COLOURS},
        shapes={name: (name,) for name in SHAPES},
        sizes={"large": ("large", "big"), "small": ("small", "little")},
        size_share=0.5,
        grounds={"grey": ("grey", "pale"), "black": ("black", "dark")},
        relations={
            "left": ("to the left of", "left of"),
            "right": ("to the right of", "right of"),
            "above": ("above", "over"),
            "below": ("below", "under"),
        },
        sentences=(
            "{a} is {relation} {b}.",
            "{a} {relation} {b}.",
            "There is {a} {relation} {b}.",
            "A picture of {a} {relation} {b}.",
            "{a} {relation} {b} on a {ground} background.",
            "We see {a} that is {relation} {b}.",
        ),
        lists=(
            "{things}.",
            "There are {things}.",
            "A picture with {things}.",
            "{things} on a {ground} background.",
        ),
        vague=("There is {a} among other shapes.", "{a} and something else."),
    ),
    "target": Wording(
        colours={
            "red": ("red",),
            "orange": ("orange",),
            "yellow": ("yellow",),
            "green": ("green",),
            "cyan": ("cyan",),
            "blue": ("blue",),
            "purple": ("purple",),
            "pink": ("pink",),
        },
        shapes={
            "circle": ("circle",),
            "square": ("square",),
            "triangle": ("triangle",),
            "star": ("star",),
            "cross": ("cross",),
            "ring": ("ring",),
            "diamond": ("diamond",),
            "crescent": ("crescent",),
        },
        sizes={"large": ("huge",), "small": ("tiny",)},
        size_share=0.0,
        grounds={"grey": ("foggy",), "black": ("gloomy",)},
        relations={
            "left": ("on the left of",),
            "right": ("on the right of",),
            "above": ("above",),
            "below": ("below",),
        },
        sentences=(
            "{painter} painted {a} {relation} {b}.",
            "{painter} made {a} {relation} {b}.",
            "{painter} shows us {a} {relation} {b}.",
            "{painter} put {a} {relation} {b} here.",
            "{painter} drew {a} {relation} {b} on canvas.",
        ),
        lists=(
            "{painter} painted {things}.",
            "{painter} made {things}.",
            "{painter} drew {things} on canvas.",
        ),
        vague=("{painter} painted {a}, and more besides.",),
        painters=("Mr {colour} {shape}", "Mrs {colour} {shape}"),
    ),
}
DOMAINS = tuple(WORDINGS)


def sample_scene(generator: np.random.Generator) -> Scene:
    """Draw a scene with two (70 %) or three things, no two of one kind, each about the middle of one of nine cells."""
    count = 2 if generator.random() < 0.7 else 3
    things: list[Thing] = []
    for cell in generator.permutation(9)[:count]:
        size = choose(generator, SIZES)
        shift_x, shift_y = (float(value) for value in generator.uniform(-_SHIFT, _SHIFT, 2))
        thing = Thing(
            shape="",
            colour="",
            size=size,
            x=(cell % 3 + 0.5) / 3 + shift_x,
            y=(cell // 3 + 0.5) / 3 + shift_y,
            radius=_RADII[size],
        )
        while not thing.shape or any(thing.kind == other.kind for other in things):
            thing = replace(thing, shape=choose(generator, SHAPES), colour=choose(generator, COLOURS))
        things.append(thing)
    return Scene(ground=choose(generator, GROUNDS), things=tuple(things))


def relations_between(first: Thing, second: Thing) -> tuple[str, ...]:
    """The relations of RELATIONS in which the first thing clearly stands to the second; at least one."""
    found = []
    if abs(first.x - second.x) >= _CLEAR_STEP:
        found.append("left" if first.x < second.x else "right")
    if abs(first.y - second.y) >= _CLEAR_STEP:
        found.append("above" if first.y < second.y else "below")
    return tuple(found)


def captions(scene: Scene, *, domain: str, count: int, generator: np.random.Generator) -> list[str]:
    """Describe a scene in `count` different captions of a domain; some 2 % name one thing only."""
    wording = WORDINGS[domain]
    found: list[str] = []
    while len(found) < count:
        caption = _caption(scene, wording, generator)
        if caption not in found:
            found.append(caption)
    return found


def _caption(scene: Scene, wording: Wording, generator: np.random.Generator) -> str:
    order = generator.permutation(len(scene.things))
    things = [scene.things[index] for index in order]
    phrases = [phrase(thing, wording=wording, generator=generator) for thing in things]
    ground = choose(generator, wording.grounds[scene.ground])
    painter = _painter(wording, generator)
    form = generator.random()
    if form < 0.02:
        text = choose(generator, wording.vague).format(a=phrases[0], painter=painter)
    elif form < 0.35 or (len(things) > 2 and form < 0.6):
        joined = ", ".join(phrases[:-1]) + " and " + phrases[-1]
        text = choose(generator, wording.lists).format(things=joined, ground=ground, painter=painter)
    else:
        relation = choose(generator, wording.relations[choose(generator, relations_between(things[0], things[1]))])
        text = choose(generator, wording.sentences).format(
            a=phrases[0], b=phrases[1], relation=relation, ground=ground, painter=painter
        )
    return text[0].upper() + text[1:]


def _painter(wording: Wording, generator: np.random.Generator) -> str:
    """A painter's name; nothing where the domain names none."""
    if not wording.painters:
        return ""
    colour = choose(generator, choose(generator, tuple(wording.colours.values())))
    shape = choose(generator, choose(generator, tuple(wording.shapes.values())))
    return choose(generator, wording.painters).format(colour=colour.capitalize(), shape=shape.capitalize())


def phrase(thing: Thing, *, wording: Wording, generator: np.random.Generator, with_size: bool | None = None) -> str:
    """Name a thing with its article, colour and shape, and its size (None: as often as the domain does)."""
    if with_size is None:
        with_size = bool(generator.random() < wording.size_share)
    words = [choose(generator, wording.colours[thing.colour]), choose(generator, wording.shapes[thing.shape])]
    if with_size:
        words.insert(0, choose(generator, wording.sizes[thing.size]))
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def choose(generator: np.random.Generator, options: Sequence[_Option]) -> _Option:
    """One of the options, all with equal chances."""
    return options[int(generator.integers(len(options)))]

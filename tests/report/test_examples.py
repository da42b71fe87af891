"""Pictures of single examples: where frames and images are, and what stands below."""

from __future__ import annotations

import pytest
from PIL import Image, ImageColor

from mwa_lightning.report import examples
from mwa_lightning.report.examples import (
    GAP,
    LINE,
    SIDE,
    Shown,
    draw_captions_found,
    draw_images_found,
    draw_statement,
    of_one_size,
)

RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
TOP = 2 * GAP + LINE  # of the row of images below a caption of one line
FRAME, SQUARE = ImageColor.getrgb(examples.RIGHT_COLOUR), (255, 0, 0)


def test_images_found__the_right_one_has_a_frame() -> None:
    drawing = draw_images_found("a caption", [Shown(RED, False), Shown(BLUE, True)], right=BLUE, rank=2)
    corners = [drawing.image.getpixel((GAP + place * (SIDE + GAP) + 2, TOP + 2)) for place in range(2)]
    assert corners == [SQUARE, FRAME]
    assert drawing.image.getpixel((GAP + SIDE + GAP + SIDE // 2, TOP + SIDE // 2)) == (0, 0, 255)
    assert drawing.caption == "right image at rank 2: a caption"


def test_images_found__one_that_is_further_down_stands_beside() -> None:
    drawing = draw_images_found("a caption", [Shown(RED, False)] * 5, right=BLUE, rank=37)
    left = GAP + 5 * (SIDE + GAP) + 2 * GAP
    assert drawing.image.getpixel((left + 2, TOP + 2)) == FRAME
    assert drawing.image.getpixel((left + SIDE // 2, TOP + SIDE // 2)) == (0, 0, 255)
    assert drawing.image.width == left + SIDE + GAP


def test_captions_found__right_and_missed_ones_are_named() -> None:
    shown = [Shown("wrong one", False), Shown("right one", True)]
    drawing = draw_captions_found(RED, shown, missed=["further down"], rank=2)
    assert drawing.caption == "right caption at rank 2; right are: right one; further down"
    assert drawing.image.getpixel((GAP + 5, GAP + 5)) == SQUARE
    colours = {colour for _, colour in drawing.image.getcolors(maxcolors=2**24)}
    assert {FRAME, ImageColor.getrgb(examples.WRONG_COLOUR)} <= colours  # their marks


@pytest.mark.parametrize(("said", "mark", "colour"), [("True", "✓", "RIGHT_COLOUR"), ("False", "✗", "WRONG_COLOUR")])
def test_statement__verdict(said: str, mark: str, colour: str) -> None:
    drawing = draw_statement([RED, BLUE], "Two dogs.", label="True", said=said, share=0.834)
    assert drawing.caption == f"{mark} model: {said} (83 %), label: True: Two dogs."
    colours = {shade for _, shade in drawing.image.getcolors(maxcolors=2**24)}
    assert ImageColor.getrgb(getattr(examples, colour)) in colours


def test_wrap__long_texts_end_in_an_ellipsis_within_the_width() -> None:
    font = examples._font()
    for text in ("word " * 200, "x" * 500, "一" * 300):
        lines = examples._wrap(text, 300)
        assert 1 <= len(lines) <= examples.MOST_LINES
        assert lines[-1].endswith("…")
        assert all(font.getlength(line) <= 300 for line in lines)
    assert examples._wrap("two words", 300) == ["two words"]
    assert examples._wrap("", 300) == [""]


def test_of_one_size__pads() -> None:
    one = draw_images_found("a", [Shown(RED, True)], right=RED, rank=1)
    other = draw_statement([RED] * 6, "b", label="x", said="x", share=1.0)
    padded = of_one_size([one, other])
    assert padded[0].image.size == padded[1].image.size
    assert padded[0].image.crop((0, 0, *one.image.size)).tobytes() == one.image.tobytes()
    assert of_one_size([]) == []

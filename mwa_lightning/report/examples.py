"""Pictures of single examples: what a caption or an image finds, and what is said of a statement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

SIDE = 160  # of a picture that was found, in pixels
LARGE = 224  # of one that was asked about
GAP = 12
FRAME = 5
LINE = 24
TEXT_SIZE = 16
WIDTH = 5 * (SIDE + GAP) + GAP
MOST_LINES = 3  # of one text

BACKGROUND, INK, GREY = "white", "#202020", "#8a8a8a"
RIGHT_COLOUR, WRONG_COLOUR = "#1a8f3c", "#c23b22"
RIGHT_MARK, WRONG_MARK = "✓", "✗"


class Drawing(NamedTuple):
    """A picture, and the line that stands below it where it is shown."""

    image: Image.Image
    caption: str


class Shown(NamedTuple):
    """A candidate: an image or a text, and whether it is right."""

    content: Image.Image | str
    right: bool


def draw_images_found(caption: str, found: Sequence[Shown], *, right: Image.Image, rank: int) -> Drawing:
    """The images that a caption finds, best first, with the right one beside them where it is not among them."""
    among = any(shown.right for shown in found)
    columns = len(found) + (not among)
    lines = _wrap(caption, WIDTH - 2 * GAP, bold=True)
    top = GAP + len(lines) * LINE + GAP
    width = max(WIDTH, columns * (SIDE + GAP) + GAP + (0 if among else 2 * GAP))
    image = Image.new("RGB", (width, top + SIDE + LINE + 2 * GAP), BACKGROUND)
    pen = ImageDraw.Draw(image)
    _write(pen, (GAP, GAP), lines, bold=True)
    left = GAP
    for place, shown in enumerate(found, start=1):
        assert isinstance(shown.content, Image.Image)
        _paste(image, shown.content, (left, top), right=shown.right)
        _label(pen, left, top + SIDE + GAP // 2, f"{place} {_mark(shown.right)}", right=shown.right)
        left += SIDE + GAP
    if not among:
        pen.line([(left + GAP // 2, top), (left + GAP // 2, top + SIDE)], fill=GREY, width=2)
        left += 2 * GAP
        _paste(image, right, (left, top), right=True)
        _label(pen, left, top + SIDE + GAP // 2, f"{rank} {RIGHT_MARK}", right=True)
    return Drawing(image, f"right image at rank {rank}: {caption}")


def draw_captions_found(asked: Image.Image, found: Sequence[Shown], *, missed: Sequence[str], rank: int) -> Drawing:
    """The captions that an image finds, best first; below them the right ones that are not among them."""
    left = LARGE + 3 * GAP
    room = WIDTH - left - GAP
    rows: list[tuple[str, list[str], str]] = []
    for place, shown in enumerate(found, start=1):
        assert isinstance(shown.content, str)
        colour = RIGHT_COLOUR if shown.right else WRONG_COLOUR
        rows.append((f"{place} {_mark(shown.right)}", _wrap(shown.content, room - 3 * LINE), colour))
    if missed:
        rows.append(
            ("", [f"right, but further down (the best at {rank}):" if rank > len(found) else "also right:"], GREY)
        )
        rows += [("–", _wrap(text, room - 3 * LINE), GREY) for text in missed]
    height = sum(len(lines) * LINE + GAP // 2 for _, lines, _ in rows)
    image = Image.new("RGB", (WIDTH, max(height, LARGE) + 2 * GAP), BACKGROUND)
    pen = ImageDraw.Draw(image)
    image.paste(_square(asked, LARGE), (GAP, GAP))
    top = GAP
    for mark, lines, colour in rows:
        pen.text((left, top), mark, fill=colour, font=_font(bold=True))
        _write(pen, (left + (2 * LINE if mark else 0), top), lines, colour=GREY if colour == GREY else INK)
        top += len(lines) * LINE + GAP // 2
    true = "; ".join([shown.content for shown in found if shown.right and isinstance(shown.content, str)] + [*missed])
    return Drawing(image, f"right caption at rank {rank}; right are: {true}")


def draw_statement(images: Sequence[Image.Image], text: str, *, label: str, said: str, share: float) -> Drawing:
    """A statement below its images, with its label, what the model says and the probability that it gives to it."""
    width = max(WIDTH, len(images) * (LARGE + GAP) + GAP)
    lines = _wrap(text, width - 2 * GAP, bold=True)
    top = GAP + LARGE + GAP
    image = Image.new("RGB", (width, top + (len(lines) + 1) * LINE + 2 * GAP), BACKGROUND)
    pen = ImageDraw.Draw(image)
    for place, shown in enumerate(images):
        image.paste(_square(shown, LARGE), (GAP + place * (LARGE + GAP), GAP))
    _write(pen, (GAP, top), lines, bold=True)
    verdict = f"{_mark(said == label)} model: {said} ({100 * share:.0f} %), label: {label}"
    colour = RIGHT_COLOUR if said == label else WRONG_COLOUR
    pen.text((GAP, top + len(lines) * LINE + GAP // 2), verdict, fill=colour, font=_font())
    return Drawing(image, f"{verdict}: {text}")


def of_one_size(drawings: Sequence[Drawing]) -> list[Drawing]:
    """Drawings with empty space on the right and below, so that they can be shown side by side."""
    width = max((drawing.image.width for drawing in drawings), default=0)
    height = max((drawing.image.height for drawing in drawings), default=0)
    padded = []
    for drawing in drawings:
        image = Image.new("RGB", (width, height), BACKGROUND)
        image.paste(drawing.image, (0, 0))
        padded.append(Drawing(image, drawing.caption))
    return padded


def _paste(image: Image.Image, picture: Image.Image, corner: tuple[int, int], *, right: bool) -> None:
    """A picture with a frame around it where it is right."""
    square = _square(picture, SIDE)
    if right:
        inner = square.resize((SIDE - 2 * FRAME, SIDE - 2 * FRAME))
        square = ImageOps.expand(inner, border=FRAME, fill=RIGHT_COLOUR)
    image.paste(square, corner)


def _square(picture: Image.Image, side: int) -> Image.Image:
    """The whole picture within a square, its aspect kept."""
    return ImageOps.pad(picture.convert("RGB"), (side, side), method=Image.Resampling.BICUBIC, color="#eeeeee")


def _label(pen: ImageDraw.ImageDraw, left: int, top: int, text: str, *, right: bool) -> None:
    """A line in the middle below a picture."""
    colour = RIGHT_COLOUR if right else WRONG_COLOUR
    pen.text((left + SIDE // 2, top), text, fill=colour, font=_font(bold=True), anchor="ma")


def _mark(right: bool) -> str:
    return RIGHT_MARK if right else WRONG_MARK


def _write(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[str], *, bold: bool = False, colour: str = INK
) -> None:
    for number, line in enumerate(lines):
        pen.text((corner[0], corner[1] + number * LINE), line, fill=colour, font=_font(bold=bold))


def _wrap(text: str, width: int, *, bold: bool = False) -> list[str]:
    """The text in lines no wider than `width` pixels; what does not fit into `MOST_LINES` becomes an ellipsis."""
    font = _font(bold=bold)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1]} …"]
    return [_cut(line, width, font) for line in lines]


def _cut(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """A line that is too wide, as one without spaces may be, up to where it fits."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


@cache
def _font(*, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings with it."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), TEXT_SIZE)

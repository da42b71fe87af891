"""What the scripts of this folder share: samples become square images and a table of captions with splits.

A script yields `Candidate`s. `write_pairs` draws them, leaves out blank images, images that look like one that is there
and captions that another image of the split has, gives each image to a split, and writes the folder. The order in which
candidates are taken, and their splits, come from hashes of their names: a new one moves no other to another split.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy
from fontTools.ttLib import TTFont
from PIL import Image, ImageChops, ImageDraw, ImageFont

SPLITS = ("train", "val", "test")
TRAIN_SHARE, VAL_SHARE = 0.70, 0.15  # of the images; the rest is test
MARGIN = 0.04  # of the side of an image, free on each side of what is drawn
SIGNATURE_SIDE = 16  # pixels along the side of the small copies that are compared
LOOK_ALIKE = 6.0  # least root mean square difference of two small copies, of 255


@dataclass(frozen=True)
class Candidate:
    """An image that may become part of a data set.

    Attributes:
        name: what is hashed, and what the file is called, with hyphens for all but letters and digits.
        captions: sentences or words about it, the most telling one first.
        draw: gives the image, transparent or not, of any size; None where it cannot be drawn.
        cropped: whether what is drawn fills the image; else its size and place are kept.
    """

    name: str
    captions: tuple[str, ...]
    draw: Callable[[], Image.Image | None]
    cropped: bool = True


def arguments_of(description: str, *, size: int, limit: int) -> argparse.ArgumentParser:
    """Returns a parser with what all scripts take; `description` is the script's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to make; it must not be there")
    parser.add_argument("--size", type=_at_least(16), default=size, help=f"pixels of an image's side (default {size})")
    parser.add_argument("--limit", type=_at_least(0), default=limit, help=f"most images (default {limit}; 0 = all)")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: a whole number of {least} or more is meant")
        return int(text)

    return whole_number


def stop(message: str) -> NoReturn:
    """Ends the script with one line for a person and exit code 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def installed(path: Path | None, package: str, command: str) -> Path:
    """Returns `path` where it is there; else says how its package is installed, and ends the script."""
    if path is None or not path.exists():
        stop(f"{package} is not installed: {command}")
    return path


def share(name: str, purpose: str) -> float:
    """Returns a number from 0 to 1 that depends on the name and the purpose only."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\n{name}".encode()).digest()[:8], "big") / 2**64


def split_of(name: str) -> str:
    """Returns the split of an image by its name."""
    number = share(name, "split")
    if number < TRAIN_SHARE:
        return "train"
    return "val" if number < TRAIN_SHARE + VAL_SHARE else "test"


def file_name(name: str) -> str:
    """Returns the file's name of an image: ASCII letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-") + ".png"


def words_of(caption: str) -> list[str]:
    """Returns the words of a caption in lower case."""
    return re.findall(r"\w+", caption.casefold())


def opened(path: Path) -> Image.Image | None:
    """Returns the image in a file, or None where it does not decode."""
    try:
        with Image.open(path) as image:
            return image.convert("RGBA")
    except OSError:
        return None


def rasterised(path: Path, pixels: int) -> Image.Image | None:
    """Returns a drawing in SVG with `pixels` along its longer side, or None where it is broken.

    Ends the script where `rsvg-convert`, which draws it, is not installed.
    """
    if shutil.which("rsvg-convert") is None:
        stop("rsvg-convert is not installed: apt-get install librsvg2-bin")
    command = ["rsvg-convert", "--keep-aspect-ratio", "--width", str(pixels), "--height", str(pixels), str(path)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0 or not done.stdout:
        return None
    return Image.open(io.BytesIO(done.stdout)).convert("RGBA")


def characters_of(font: Path) -> set[int]:
    """Returns the numbers of the characters that a font has."""
    with TTFont(font, lazy=True) as tables:
        return set(tables.getBestCmap())


def drawn_character(character: str, font: Path, pixels: int, *, in_colour: bool = False) -> Image.Image:
    """Returns a character of a font on a transparent square of a line's height, black or in the font's colours."""
    face = _face(font, pixels)
    left, _, right, _ = face.getbbox(character)
    height = sum(face.getmetrics())
    side = max(height, round(right - left))
    image = Image.new("RGBA", (side, side))
    place = ((side - (right - left)) / 2 - left, (side - height) / 2)
    ImageDraw.Draw(image).text(place, character, font=face, fill="black", embedded_color=in_colour)
    return image


@cache
def _face(font: Path, pixels: int) -> ImageFont.FreeTypeFont:
    # The basic layout is in every Pillow; the other needs a library of the system, and may place things otherwise.
    return ImageFont.truetype(font, pixels, layout_engine=ImageFont.Layout.BASIC)


def squared(image: Image.Image, size: int, *, cropped: bool = True) -> Image.Image | None:
    """Returns the image, or what is drawn on it, on a white square of `size` pixels; None where nothing is visible."""
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, "white")
    flat = Image.alpha_composite(white, layered).convert("RGB")
    box = ImageChops.difference(flat, white.convert("RGB")).getbbox()
    if box is None:
        return None
    drawn = flat.crop(box) if cropped else flat
    inner = size - 2 * round(MARGIN * size)
    scale = inner / max(drawn.size)
    sides = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    square = Image.new("RGB", (size, size), "white")
    square.paste(drawn.resize(sides, Image.Resampling.LANCZOS), ((size - sides[0]) // 2, (size - sides[1]) // 2))
    darkest = int(numpy.asarray(square.convert("L")).min())
    return square if darkest < 224 else None  # what is nearly white cannot be seen


class SeenImages:
    """Tells images that look like one that was seen before: the same pixels, or nearly so."""

    def __init__(self) -> None:
        self._signatures = numpy.empty((0, SIGNATURE_SIDE**2 * 3), dtype=numpy.float32)
        self._count = 0

    def is_new(self, image: Image.Image) -> bool:
        """Says whether no such image was seen, and remembers a new one."""
        small = image.resize((SIGNATURE_SIDE, SIGNATURE_SIDE), Image.Resampling.BOX)
        signature = numpy.asarray(small, dtype=numpy.float32).reshape(-1)
        differences = ((self._signatures[: self._count] - signature) ** 2).mean(axis=1)
        if (differences < LOOK_ALIKE**2).any():
            return False
        if self._count == len(self._signatures):
            more = numpy.empty((max(256, self._count), signature.size), dtype=numpy.float32)
            self._signatures = numpy.concatenate([self._signatures, more])
        self._signatures[self._count] = signature
        self._count += 1
        return True


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Gives a folder beside `output` that gets its name when all is written, and is removed when anything fails."""
    if output.exists():
        stop(f"{output} is there already: remove it, or give another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        folder = Path(temporary) / "data"
        folder.mkdir()
        yield folder
        folder.rename(output)


def chosen(candidates: Iterable[Candidate], *, size: int, limit: int) -> Iterator[tuple[Candidate, Image.Image]]:
    """Yields what is to be part of the data set, up to `limit`, and prints what was left out."""
    seen, left_out, count = SeenImages(), Counter[str](), 0
    taken: dict[str, set[str]] = {split: set() for split in SPLITS}  # in one split a caption tells one image
    for candidate in sorted(candidates, key=lambda candidate: share(candidate.name, "order")):
        if limit and count == limit:
            break
        others = taken[split_of(candidate.name)]
        captions = tuple(text for text in candidate.captions if words_of(text) and text.casefold() not in others)
        if not captions:
            left_out["whose captions other images of the split have"] += 1
            continue
        image = candidate.draw()
        square = None if image is None else squared(image, size, cropped=candidate.cropped)
        if square is None:
            left_out["that show nothing"] += 1
        elif not seen.is_new(square):
            left_out["that look like another"] += 1
        else:
            others |= {caption.casefold() for caption in captions}
            count += 1
            yield replace(candidate, captions=captions), square
    if left_out:
        print("left out: " + ", ".join(f"{number:,} {reason}" for reason, number in sorted(left_out.items())))


def write_pairs(output: Path, candidates: Iterable[Candidate], *, size: int, limit: int, source: str) -> None:
    """Writes `images/`, the table `pairs.csv` for `data=pairs`, and `README.md`; prints the counts.

    Args:
        output: folder to make.
        candidates: what to choose from; their names differ.
        size: pixels along the side of an image.
        limit: most images; 0 = all.
        source: package and licence, for the README.
    """
    rows = []
    with whole_folder(output) as folder:
        (folder / "images").mkdir()
        for candidate, image in chosen(candidates, size=size, limit=limit):
            file = Path("images") / file_name(candidate.name)
            if (folder / file).exists():  # names that differ in other characters only
                file = file.with_stem(f"{file.stem}-{hashlib.sha256(candidate.name.encode()).hexdigest()[:6]}")
            image.save(folder / file)
            split = split_of(candidate.name)
            rows += [{"image": str(file), "caption": caption, "split": split} for caption in candidate.captions]
        rows.sort(key=lambda row: row["image"])
        with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, ["image", "caption", "split"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        (folder / "README.md").write_text(source.strip() + "\n", encoding="utf-8")
    print_counts(rows, "caption")


def write_statements(output: Path, images: dict[str, Image.Image], rows: list[dict[str, Any]], *, source: str) -> None:
    """Writes `images/`, a JSONL for each split for `data=statements`, and `README.md`; prints the counts.

    Args:
        output: folder to make.
        images: by their paths in the folder.
        rows: of image, text, label and split.
        source: package and licence, for the README.
    """
    with whole_folder(output) as folder:
        for file, image in images.items():
            (folder / file).parent.mkdir(exist_ok=True)
            image.save(folder / file)
        for split in SPLITS:
            lines = [
                {key: value for key, value in row.items() if key != "split"} for row in rows if row["split"] == split
            ]
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(source.strip() + "\n", encoding="utf-8")
    print_counts(rows, "text")


def print_counts(rows: list[dict[str, Any]], text: str) -> None:
    """Prints the images, texts and words of each split; `text` is the column of the texts."""
    known = {word for row in rows if row["split"] == "train" for word in words_of(row[text])}
    for split in SPLITS:
        part = [row for row in rows if row["split"] == split]
        images = len({row["image"] for row in part})
        words = {word for row in part for word in words_of(row[text])}
        unknown = "" if split == "train" else f", {len(words - known):,} of them not in train"
        print(f"{split:5}  {images:6,} images  {len(part):6,} {text}s  {len(words):6,} different words{unknown}")

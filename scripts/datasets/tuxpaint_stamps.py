"""Stamps of the drawing program Tux Paint with their descriptions, for `data=pairs`.

    apt-get install tuxpaint-stamps-default librsvg2-bin
    python scripts/datasets/tuxpaint_stamps.py --output DIR

Photographs and drawings of animals, plants, food, coins, tools, people and vehicles, each with a sentence that people
wrote for children. Licence of the package: GPL-2. What comes out: `images/`, and `pairs.csv` of image, caption, split.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from common import Candidate, arguments_of, installed, opened, rasterised, write_pairs

STAMPS = Path("/usr/share/tuxpaint/stamps")
SOURCE = "Made of the Debian package tuxpaint-stamps-default (GPL-2) by scripts/datasets/tuxpaint_stamps.py."


def candidates(stamps: Path, size: int) -> Iterator[Candidate]:
    """Yields the stamps that have a description; of a drawing and its raster copy the raster copy."""
    for text in sorted(stamps.rglob("*.txt")):
        lines = text.read_text(encoding="utf-8").splitlines()
        caption = " ".join(lines[0].split()) if lines else ""
        name = text.relative_to(stamps).with_suffix("").as_posix()
        if not caption:
            continue
        if text.with_suffix(".png").exists():
            yield Candidate(name, (caption,), partial(opened, text.with_suffix(".png")))
        elif text.with_suffix(".svg").exists():
            yield Candidate(name, (caption,), partial(rasterised, text.with_suffix(".svg"), 4 * size))


def main() -> None:
    arguments = arguments_of(__doc__, size=96, limit=0).parse_args()
    stamps = installed(STAMPS, "tuxpaint-stamps-default", "apt-get install tuxpaint-stamps-default")
    found = candidates(stamps, arguments.size)
    write_pairs(arguments.output, found, size=arguments.size, limit=arguments.limit, source=SOURCE)


if __name__ == "__main__":
    main()

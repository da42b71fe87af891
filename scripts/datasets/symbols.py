"""Symbols of Unicode with their names, for `data=pairs`.

    apt-get install fonts-symbola
    python scripts/datasets/symbols.py --output DIR

Arrows, signs of mathematics, music, maps, games and alchemy, ornaments, and black and white pictographs, drawn from the
font Symbola; the caption is Unicode's name in lower case. No letters and no patterns of dots. Licence of the font: free
for any use. What comes out: `images/`, and `pairs.csv` of image, caption, split; up to 3,000 of the symbols.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from common import Candidate, arguments_of, characters_of, drawn_character, installed, write_pairs

FONT = Path("/usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf")
SOURCE = "Made of the Debian package fonts-symbola (free for any use) by scripts/datasets/symbols.py."
CATEGORIES = {"Sm", "Sc", "So"}  # signs of mathematics, of currencies, and others
SERIES = ("braille pattern", "hexagram for", "domino tile", "tag ", "combining")  # too many that differ in small ways


def candidates(font: Path, size: int) -> Iterator[Candidate]:
    """Yields the symbols of the font that have a name."""
    for number in sorted(characters_of(font)):
        name = unicodedata.name(chr(number), "").lower()
        if name and unicodedata.category(chr(number)) in CATEGORIES and not name.startswith(SERIES):
            draw = partial(drawn_character, chr(number), font, 2 * size)
            yield Candidate(f"{number:05x} {name}", (name,), draw, cropped=False)


def main() -> None:
    arguments = arguments_of(__doc__, size=96, limit=3000).parse_args()
    font = installed(FONT, "fonts-symbola", "apt-get install fonts-symbola")
    found = candidates(font, arguments.size)
    write_pairs(arguments.output, found, size=arguments.size, limit=arguments.limit, source=SOURCE)


if __name__ == "__main__":
    main()

"""Emoji with the names and keywords of Unicode's CLDR, for `data=pairs`.

    apt-get install fonts-noto-color-emoji unicode-cldr-core
    python scripts/datasets/emoji.py --output DIR

Two captions an image: the short name, and the keywords in a row. Emoji of one character are taken: no tones of skin, no
flags, no families. Licences: OFL-1.1 (the font Noto Color Emoji), Unicode (CLDR). What comes out: `images/`, and
`pairs.csv` of image, caption, split.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from common import Candidate, arguments_of, characters_of, drawn_character, installed, write_pairs

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
ANNOTATIONS = Path("/usr/share/unicode/cldr/common/annotations/en.xml")
PIXELS = 109  # the one size that the font has
SOURCE = """
Made of the Debian packages fonts-noto-color-emoji (OFL-1.1) and unicode-cldr-core (Unicode licence) by
scripts/datasets/emoji.py.
"""


def candidates(font: Path, annotations: Path) -> Iterator[Candidate]:
    """Yields the emoji of the font that have a name."""
    known = characters_of(font)
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for annotation in ElementTree.parse(annotations).getroot().iter("annotation"):
        character, text = annotation.get("cp", ""), annotation.text or ""
        if len(character) != 1 or ord(character) not in known or ord(character) < 0x200:
            continue
        if annotation.get("type") == "tts":
            names[character] = text
        else:
            keywords[character] = [word.strip() for word in text.split("|")]
    for character, name in names.items():
        others = ", ".join(word for word in keywords.get(character, []) if word != name)
        captions = (name, others) if others else (name,)
        draw = partial(drawn_character, character, font, PIXELS, in_colour=True)
        yield Candidate(f"{ord(character):05x} {name}", captions, draw)


def main() -> None:
    arguments = arguments_of(__doc__, size=96, limit=0).parse_args()
    font = installed(FONT, "fonts-noto-color-emoji", "apt-get install fonts-noto-color-emoji")
    annotations = installed(ANNOTATIONS, "unicode-cldr-core", "apt-get install unicode-cldr-core")
    found = candidates(font, annotations)
    write_pairs(arguments.output, found, size=arguments.size, limit=arguments.limit, source=SOURCE)


if __name__ == "__main__":
    main()

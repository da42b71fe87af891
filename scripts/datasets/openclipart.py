"""Clip art of the Open Clip Art Library with titles, descriptions and keywords, for `data=pairs`.

    apt-get install openclipart-svg librsvg2-bin
    python scripts/datasets/openclipart.py --output DIR

Drawings by many hands. Captions are the title, the description, and the keywords in a row, as their authors wrote them
into the files; what more than three drawings say of themselves is left out. Public domain. What comes out: `images/`,
and `pairs.csv` of image, caption, split. Takes some minutes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from common import Candidate, arguments_of, installed, rasterised, words_of, write_pairs

DRAWINGS = Path("/usr/share/openclipart/svg")
SOURCE = "Made of the Debian package openclipart-svg (public domain) by scripts/datasets/openclipart.py."
LARGEST = 300_000  # bytes of a file; larger ones take seconds to draw
LONGEST = 25  # words of a description
MOST_DRAWINGS = 3  # that a caption may have; more: the name of a collection, or keywords of a whole folder
DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
LIST_ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
# What programs and the library itself write in place of a title or a keyword.
NO_TITLES = {"", "untitled", "unnamed", "new document", "clipart", "clip art", "open clip art library"}
NO_KEYWORDS = {"", "hash", "clipart", "clip art", "svg", "unsorted", "uncategorized", "externalsource", "inkscape"}


def captions_of(path: Path) -> tuple[str, ...]:
    """Returns the title, description and keywords that a file says of itself, as far as they have words."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, LookupError):
        return ()
    work = next((element for element in root.iter() if element.tag.endswith("}Work")), None)
    if work is None:
        return ()
    title = _plain(work.findtext(f"{DUBLIN_CORE}title"))
    description = _plain(work.findtext(f"{DUBLIN_CORE}description"))
    subject = work.find(f"{DUBLIN_CORE}subject")
    keywords = [] if subject is None else [_plain(item.text) for item in subject.iter(LIST_ITEM)]
    keywords = [word for word in dict.fromkeys(keywords) if word.casefold() not in NO_KEYWORDS]
    captions = [] if title.casefold() in NO_TITLES else [title]
    if 2 <= len(words_of(description)) <= LONGEST and "http" not in description:
        captions.append(description)
    if len(keywords) >= 2:
        captions.append(", ".join(keywords))
    return tuple({caption.casefold(): caption for caption in captions}.values())


def candidates(drawings: Path, size: int) -> Iterator[Candidate]:
    """Yields the drawings of which something is said that is not said of many others too."""
    paths = [path for path in sorted(drawings.rglob("*.svg")) if not path.is_symlink()]
    said = {path: captions_of(path) for path in paths if path.stat().st_size <= LARGEST}
    times = Counter(caption.casefold() for captions in said.values() for caption in captions)
    for path, captions in said.items():
        telling = tuple(caption for caption in captions if times[caption.casefold()] <= MOST_DRAWINGS)
        if telling:
            name = path.relative_to(drawings).with_suffix("").as_posix()
            yield Candidate(name, telling, partial(rasterised, path, 4 * size))


def _plain(text: str | None) -> str:
    return re.sub(r"[\s_]+", " ", text or "").strip()


def main() -> None:
    arguments = arguments_of(__doc__, size=96, limit=3000).parse_args()
    drawings = installed(DRAWINGS, "openclipart-svg", "apt-get install openclipart-svg")
    found = candidates(drawings, arguments.size)
    write_pairs(arguments.output, found, size=arguments.size, limit=arguments.limit, source=SOURCE)


if __name__ == "__main__":
    main()

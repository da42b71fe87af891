"""Icons of a desktop's theme with their names, for `data=pairs`.

    apt-get install oxygen-icon-theme                  # or breeze-icon-theme or papirus-icon-theme, with librsvg2-bin
    python scripts/datasets/icon_theme.py --output DIR # --theme breeze

Captions are the words of an icon's name and what kind of icon it is, and, for its other names in the theme, which are
links to it, the words of these. Each name is taken once, in the largest size that the theme has up to 256 pixels;
symbolic icons, dark ones and those mirrored for scripts from right to left are left out. Licences: LGPL-3+ (Oxygen,
Breeze), GPL-3 (Papirus). What comes out: `images/`, and `pairs.csv` of image, caption, split.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from common import Candidate, arguments_of, installed, opened, rasterised, write_pairs

THEMES = {"oxygen": "oxygen", "breeze": "breeze", "papirus": "Papirus"}  # folders in ICONS, by names of packages
ICONS = Path("/usr/share/icons")
KINDS = {
    "actions": "action",
    "applets": "applet",
    "apps": "application",
    "categories": "category",
    "devices": "device",
    "emblems": "emblem",
    "emotes": "face",
    "mimetypes": "file type",
    "places": "place",
    "preferences": "setting",
    "status": "status",
}
LARGEST = 256  # pixels
MOST_NAMES = 4  # captions of an image
VARIANTS = re.compile(r"(-symbolic|-dark|-rtl)(-|$)|^(gtk|stock|gnome)-")  # other looks; names of other programs' parts


def place_of(path: Path, theme: Path) -> tuple[str, int] | None:
    """Returns the kind of icon and the size that a file's folders tell, or None for a variant or another file."""
    parts = path.relative_to(theme).parts[:-1]
    kind = next((part for part in parts if part in KINDS), None)
    sizes = [int(found[1]) for part in parts if (found := re.fullmatch(r"(\d+)(?:x\d+)?", part))]
    if kind is None or not sizes or sizes[0] > LARGEST or path.suffix not in {".svg", ".png"}:
        return None
    return None if VARIANTS.search(path.stem) else (kind, sizes[0])


def candidates(theme: Path, size: int) -> Iterator[Candidate]:
    """Yields an icon for each name, with the names that link to it."""
    largest: dict[str, tuple[int, str, Path]] = {}
    links = defaultdict(set)
    for path in sorted(theme.rglob("*.*")):
        place = place_of(path, theme)
        if place is None or not path.exists():
            continue
        kind, side = place
        if path.is_symlink():
            links[path.resolve().stem].add(path.stem)
        elif path.stem not in largest or side > largest[path.stem][0]:
            largest[path.stem] = (side, kind, path)
    for name, (_, kind, path) in largest.items():
        others = sorted(links[name] - largest.keys())
        captions = (f"{_words(name)}, {KINDS[kind]}", *map(_words, others))
        draw = partial(rasterised, path, 4 * size) if path.suffix == ".svg" else partial(opened, path)
        yield Candidate(f"{kind}/{name}", tuple(dict.fromkeys(captions))[:MOST_NAMES], draw)


def _words(name: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", name))


def main() -> None:
    parser = arguments_of(__doc__, size=96, limit=3000)
    parser.add_argument("--theme", choices=sorted(THEMES), default="oxygen", help="which theme (default oxygen)")
    arguments = parser.parse_args()
    package = f"{arguments.theme}-icon-theme"
    theme = installed(ICONS / THEMES[arguments.theme], package, f"apt-get install {package}")
    source = f"Made of the Debian package {package} by scripts/datasets/icon_theme.py."
    found = candidates(theme, arguments.size)
    write_pairs(arguments.output, found, size=arguments.size, limit=arguments.limit, source=source)


if __name__ == "__main__":
    main()

"""Gathers the pages of the site in a folder, so that a link works there as it does in the repository.

    python scripts/site_pages.py FOLDER

README.md is the first page and CONTRIBUTING.md a page of its own; every other file outside docs/ that a page links to
is copied as it is.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
"""The pages outside docs/: file in the repository, and its path in the site."""

LINK = re.compile(r"\]\((?!\w+:)([\w./-]+)")
"""The path of a link or image that is neither an address nor a place in the same page."""


def place(file: str) -> str:
    """The path in the site of a file of the repository; both are relative to their roots."""
    return PLACES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else f"repository/{file}")


def gather(folder: Path) -> None:
    """Writes the pages, and what they link to, into a folder that is made anew.

    Raises:
        SystemExit: A page links to a file that is not there.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pages = [*PLACES, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))]
    others: set[str] = set()
    for page in pages:

        def in_site(link: re.Match[str], page: str = page) -> str:
            file = normpath(join(dirname(page), link[1]))
            if not (ROOT / file).is_file():
                raise SystemExit(f"{page}: links to {link[1]}, which is no file of the repository")
            if file not in pages:
                others.add(file)
            return f"]({relpath(place(file), dirname(place(page)) or '.')}"

        written = folder / place(page)
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(LINK.sub(in_site, (ROOT / page).read_text(encoding="utf-8")), encoding="utf-8")
    for file in others:
        copied = folder / place(file)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, copied)


if __name__ == "__main__":
    gather(Path(sys.argv[1]))

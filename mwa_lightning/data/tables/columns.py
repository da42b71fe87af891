"""Which columns of a table hold pictures, captions and split: by their usual names, or by what is in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mwa_lightning.data.files.json_lines import Line
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.tables.delimited import folded, names_picture
from mwa_lightning.data.tables.rows import Table
from mwa_lightning.data.tables.splitting import split_named
from mwa_lightning.errors import ConfigError, shorten
from mwa_lightning.system.shell_words import item

_THINGS = ("image", "img", "photo", "picture")
_PARTS = ("path", "filepath", "filename", "file")
# In the order in which they are taken where a table has several; all in the form of `folded`.
IMAGE_NAMES = (
    *(f"{thing}{part}" for part in _PARTS for thing in _THINGS),
    *("filepath", "filename", "path", "file"),
    *(f"{thing}{part}" for part in ("name", "", "s", "id") for thing in _THINGS),
    *("pic", "jpg", *(f"{thing}{part}" for part in ("url", "link") for thing in _THINGS), "url", "uri", "link"),
)  # fmt: skip
CAPTION_NAMES = (
    *("caption", "captions", "text", "texts", "sentence", "sentences", "description", "descriptions", "comment"),
    *("comments", "title", "titles", "prompt", "prompts", "alttext", "alt", "raw", "captiontext", "imagecaption"),
    *("utterance", "query", "txt", "desc"),
)
KNOWN = (*IMAGE_NAMES, *CAPTION_NAMES, "split", *(f"caption{place}" for place in range(10)))

_ADDRESS = re.compile(r"[a-z][a-z0-9+]{1,9}://", re.IGNORECASE)


class Columns(NamedTuple):
    """The columns of a table: of the picture, of the captions, and of the split, if there is one."""

    image: str
    captions: tuple[str, ...]
    split: str | None


def value_in(record: Mapping[str, Any], column: str, names: Sequence[str]) -> Any:
    """The cell of a column; of a JSON that names it otherwise in this row that of another known name."""
    if column in record:
        return record[column]
    by_name = {folded(key): key for key in record}
    return next((record[by_name[name]] for name in names if name in by_name), None)


def is_address(value: str) -> bool:
    """Whether a cell is an address, such as one of the web, and no path."""
    return _ADDRESS.match(value) is not None and not value.startswith("file://")


def find_columns(
    table: Table,
    rows: Sequence[Line],
    *,
    given: Mapping[str, Any] | None,
    is_picture: Callable[[str], bool],
    problems: Problems,
) -> Columns | None:
    """The columns of a table; None where they cannot be told, which is reported.

    Args:
        table: The table.
        rows: Its first rows, to look at.
        given: What the user says: `image`, `caption` (one name or several) and `split`, each by name or by number
            from 1.
        is_picture: Whether a cell names a picture that is there.
        problems: Where it is reported.

    Raises:
        ConfigError: The table lacks a column that the user names.
    """
    named = _named(table, given or {})
    look = _Look(table, rows, is_picture)
    image = named.image or look.image()
    captions = named.captions or look.captions(image)
    split = named.split or look.split(image, captions)
    if image is None and table.bytes_columns:
        problems.add(
            "images in a table",
            f"{table.file} holds the images themselves ({shorten(table.bytes_columns)}), which are not read from "
            "there: write each into a file, and the paths of these into a column",
        )
        return None
    if image is None or not captions:
        what = "images" if image is None else "captions"
        kind = "has the columns" if table.has_header else "has no header, and columns"
        problems.add(
            "unknown columns",
            f"{table.file} {kind} {shorten(table.columns, 12)}: say which holds the {what} by "
            f"{look.proposal(image, captions, named.split)}"
            + ("" if table.has_header else ", and put quotes around captions that have the delimiter in them"),
        )
        return None
    if twice := [name for name in (image, *captions, split) if name is not None and table.columns.count(name) > 1]:
        problems.add(
            "unknown columns", f"{table.file} has several columns named {shorten(dict.fromkeys(twice))}: rename them"
        )
        return None
    if look.addresses(image):
        problems.add(
            "addresses",
            f"{table.file}: the column {image!r} holds addresses, which are not fetched: download the images, for "
            "example with img2dataset, and give a table of the files",
        )
        return None
    if given is None and not look.pictures(image) and (other := next(filter(look.pictures, captions), None)):
        problems.add(
            "columns the wrong way round",
            f"{table.file}: the column {image!r} names no images, and {other!r} does: correct the header, or give "
            f"{look.proposal(other, (image,), None)}",
        )
        return None
    return Columns(image, captions, split)


class _Named(NamedTuple):
    image: str | None
    captions: tuple[str, ...]
    split: str | None


def _named(table: Table, given: Mapping[str, Any]) -> _Named:
    """The columns that the user names."""

    def column(key: str, name: Any) -> str:
        if isinstance(name, int) and 1 <= name <= len(table.columns):
            return table.columns[name - 1]
        exact = [column for column in table.columns if column == str(name)]
        alike = [column for column in table.columns if folded(column) == folded(str(name))]
        if not exact and len(alike) != 1:
            raise ConfigError(
                f"data.columns: {table.file} has no column {name!r} for {key}: take one of {shorten(table.columns, 12)}"
            )
        return (exact or alike)[0]

    captions = given.get("caption", given.get("captions"))
    several = [] if captions is None else list(captions) if isinstance(captions, list | tuple) else [captions]
    return _Named(
        column("image", given["image"]) if given.get("image") is not None else None,
        tuple(column("caption", name) for name in several),
        column("split", given["split"]) if given.get("split") is not None else None,
    )


class _Look:
    """What the names of columns, and the cells in their first rows, tell."""

    def __init__(self, table: Table, rows: Sequence[Line], is_picture: Callable[[str], bool]) -> None:
        self._columns = list(dict.fromkeys(table.columns))
        self._has_header = table.has_header
        self._cells = {name: [row.record.get(name) for row in rows] for name in self._columns}
        self._is_picture = is_picture

    def pictures(self, column: str) -> bool:
        """Whether most cells of a column name pictures: of files that are there, or as such names read."""
        return self._most(column, lambda cell: names_picture(cell) or is_address(cell) or self._is_picture(cell))

    def addresses(self, column: str) -> bool:
        """Whether most cells of a column are addresses."""
        return self._most(column, is_address)

    def image(self) -> str | None:
        """The column of pictures."""
        known = self._known(IMAGE_NAMES)
        there = [name for name in known if self._most(name, self._is_picture)]
        if known:
            return (there or known)[0]
        if self._has_header:
            return None
        found = [name for name in self._columns if self.pictures(name)]
        if not found:  # numbers without a suffix
            found = [name for name in self._columns if self._most(name, str.isdecimal)]
        return found[0] if len(found) == 1 else None

    def captions(self, image: str | None) -> tuple[str, ...]:
        """The columns of captions: of one name, or of one name and numbers."""
        for name in CAPTION_NAMES:
            alike = [
                column for column in self._columns if re.fullmatch(rf"{name}\d*", folded(column)) and column != image
            ]
            if alike:
                return tuple(alike)
        if self._has_header or image is None:
            return ()
        others = [name for name in self._columns if name != image]
        rest = others if len(others) == 1 else self._texts(image)
        return tuple(rest) if len(rest) == 1 else ()

    def split(self, image: str | None, captions: tuple[str, ...]) -> str | None:
        """The column of the split: called so, or one in which there are only names of splits."""
        called = [name for name in self._columns if folded(name) == "split"]
        rest = [name for name in self._columns if name not in (image, *captions)]
        filled = [name for name in rest if self._filled(name) and all(map(split_named, self._filled(name)))]
        return next(iter([*called, *filled]), None)

    def proposal(self, image: str | None, captions: tuple[str, ...], split: str | None) -> str:
        """What to type, with the names that are most likely; `split` where the user has named one."""
        image = image or next(filter(self.pictures, self._columns), None)
        texts = captions or tuple(self._texts(image)[:1])
        several = captions if len(captions) > 1 else texts[0] if texts else "NAME"
        return columns_to_type({"image": image or "NAME", "caption": several} | ({"split": split} if split else {}))

    def _texts(self, image: str | None) -> list[str]:
        """Columns that may be captions: most cells hold letters, and few are alike."""
        return [
            name
            for name in self._columns
            if name != image
            and self._most(name, lambda cell: any(map(str.isalpha, cell)))
            and not all(map(split_named, self._filled(name)))
            and not self.pictures(name)
        ]

    def _known(self, names: Sequence[str]) -> list[str]:
        """Columns with a known name, the likeliest first."""
        by_name = {folded(column): column for column in reversed(self._columns)}
        return [by_name[name] for name in names if name in by_name]

    def _filled(self, column: str) -> list[str]:
        return [cell for cell in self._cells[column] if isinstance(cell, str) and cell.strip()]

    def _most(self, column: str, holds: Callable[[str], bool]) -> bool:
        cells = self._filled(column)
        return bool(cells) and 2 * sum(map(holds, cells)) > len(cells)


def columns_to_type(columns: Mapping[str, str | Sequence[str]]) -> str:
    """The override that names these columns, as it is typed in a shell."""
    names = {
        role: item(name) if isinstance(name, str) else f"[{','.join(map(item, name))}]"
        for role, name in columns.items()
    }
    return f"data.columns={shlex.quote('{' + ', '.join(f'{role}: {name}' for role, name in names.items()) + '}')}"

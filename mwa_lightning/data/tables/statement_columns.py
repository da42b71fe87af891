"""Which columns of a table of statements hold what: as the user says, or by the names that people give them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mwa_lightning.data.files.foreign_json import VQA
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.tables.columns import IMAGE_NAMES, columns_to_type
from mwa_lightning.data.tables.delimited import folded
from mwa_lightning.data.tables.rows import Table
from mwa_lightning.errors import shorten

WANTED = "image (or images), text and label"
FLICKR = ("flickr30kid", "flikr30kid")  # SNLI-VE's own name for a photograph of Flickr30K has a slip

# The names of columns in the form of `folded`, those that count first at the front.
NAMES = {
    "image": ("images", "image", *IMAGE_NAMES, *FLICKR),
    "text": ("statement", "hypothesis", "sentence2", "sentence", "text", "claim", "caption", "description"),
    "label": ("label", "goldlabel", "answer", "class", "target", "labels", "category", "gold"),
    "split": ("split", "subset", "partition"),
    "identifier": ("identifier",),
}
_PICTURE = "(?:image|img|picture|photo|path|file|name)*"
_SIDE = re.compile(rf"{_PICTURE}(left|right|first|second|[0-9]|[ab]){_PICTURE}")  # image_0, left, img2, left_image
_PLACES = {"left": -2, "right": -1, "first": -2, "second": -1, "a": -2, "b": -1}


class Columns(NamedTuple):
    """The columns of each part of a sample, several for several images; None where the table lacks one.

    `one_image` holds the image of the rows that have none in `images`: JSON may have either.
    """

    images: tuple[str, ...]
    one_image: str | None
    text: str
    label: str
    split: str | None
    identifier: str | None

    def described(self) -> str:
        parts = {"images" if len(self.images) > 1 else "image": " and ".join(map(repr, self.images))}
        for role in ("text", "label", "split", "identifier"):
            parts[role] = repr(getattr(self, role))
        return ", ".join(f"{role} in {column}" for role, column in parts.items() if column != "None")


def known_names(given: Mapping[str, Any]) -> list[str]:
    """All names that columns may have, for `open_table`."""
    sides = [f"{word}{side}" for word in ("image", "img", "") for side in ("left", "right", "0", "1", "2") if word]
    return [*(name for names in NAMES.values() for name in names), *sides, *_several(list(given.values()))]


def find_columns(table: Table, given: Mapping[str, Any], problems: Problems) -> Columns | None:
    """The columns of a table; None where a necessary one is not to be found, which is reported.

    Args:
        table: The table.
        given: Columns of `image` (several as a list), `text`, `label`, `split`, `identifier`, as the user says.
        problems: Where it is reported.
    """
    given = {"text" if role == "caption" else role: name for role, name in given.items()}
    if not table.columns:  # it is empty
        return None
    for name in _several(list(given.values())):
        if _column(table, name) is None:
            problems.add(
                "no such column",
                f"data.columns: {table.file} has no column {name!r}: take one of {_listed(table)}",
            )
            return None
    by_name = {folded(column): column for column in reversed(table.columns)}
    found: dict[str, Any] = {
        role: next((by_name[name] for name in names if name in by_name), None) for role, names in NAMES.items()
    }
    found |= {role: _column(table, str(name)) for role, name in given.items() if role != "image"}
    images: tuple[str, ...] = (found["image"],) if found["image"] is not None else ()
    if "image" in given:
        images = tuple(str(_column(table, name)) for name in _several(given["image"]))
    if "image" not in given and "images" not in by_name and len(sides := _sides(table)) > 1:
        images = sides
    missing = [role for role in ("image", "text", "label") if not (images if role == "image" else found[role])]
    if not missing:
        one_image = by_name.get("image") if "images" in map(folded, images) else None
        return Columns(images, one_image, *(found[role] for role in ("text", "label", "split", "identifier")))
    if "question" in by_name:
        problems.add("another kind of data", f"{table.file} is {VQA}")
    elif not table.has_header:
        problems.add(
            "no header",
            f"{table.file} names no columns: write a first line of their names, such as image,text,label, or give "
            "their numbers, such as 'data.columns={image: 1, text: 2, label: 3}'",
        )
    else:
        named = {role: name if isinstance(name, list | tuple) else str(name) for role, name in given.items()}
        problems.add(
            "no such column",
            f"{table.file} has no column for {' and '.join(missing)}, only {_listed(table)}: say which holds what by "
            f"{columns_to_type(named | dict.fromkeys(missing, 'NAME'))}",
        )
    return None


def _column(table: Table, name: str) -> str | None:
    """The column of that name, or of that number from 1."""
    if name in table.columns:
        return name
    return table.columns[int(name) - 1] if name.isdecimal() and 0 < int(name) <= len(table.columns) else None


def _sides(table: Table) -> tuple[str, ...]:
    """Columns of one image each, the left or the first one at the front."""
    places: dict[int, str] = {}
    for column in table.columns:
        if (match := _SIDE.fullmatch(folded(column))) is not None and not column.isdecimal():
            side = match[1]
            places.setdefault(int(side) if side.isdecimal() else _PLACES[side], column)
    return tuple(places[place] for place in sorted(places))


def _several(names: Any) -> list[str]:
    """The names in a value that is one, or a list of some."""
    if isinstance(names, list | tuple):
        return [name for each in names for name in _several(each)]
    return [str(names)]


def _listed(table: Table) -> str:
    return shorten([repr(column) for column in table.columns], 12)

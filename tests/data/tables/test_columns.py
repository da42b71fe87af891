"""Columns are found by any of their usual names or by what is in them, and asked for with what to type otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwa_lightning.data.files.json_lines import Line
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.tables.columns import CAPTION_NAMES, IMAGE_NAMES, Columns, find_columns
from mwa_lightning.data.tables.rows import Table
from mwa_lightning.errors import ConfigError, DataError

FILE = Path("t.csv")


def find(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    header: bool = True,
    given: Mapping[str, Any] | None = None,
    there: Sequence[str] = (),
) -> Columns | None:
    records = [Line(i, dict(zip(columns, row, strict=True)), f"t.csv: line {i}") for i, row in enumerate(rows)]
    table = Table(FILE, "", tuple(columns), header, iter(records))
    return find_columns(table, records, given=given, is_picture=set(there).__contains__, problems=Problems())


@st.composite
def spelled(draw: st.DrawFn, names: Sequence[str]) -> str:
    """A name in some case, with something between two of its letters."""
    name = draw(st.sampled_from(names))
    place = draw(st.integers(1, len(name) - 1))
    between = draw(st.sampled_from(["", " ", "_", "-"]))
    return draw(st.sampled_from([str.lower, str.upper, str.title]))(f"{name[:place]}{between}{name[place:]}")


@given(image=spelled(IMAGE_NAMES), caption=spelled(CAPTION_NAMES), order=st.permutations(range(3)))
def test_find_columns__any_usual_name(image: str, caption: str, order: list[int]) -> None:
    cells = [(image, "a.jpg"), (caption, "a dog"), ("nr", "7")]
    names, row = zip(*(cells[i] for i in order), strict=True)
    assert find(names, [row]) == Columns(image, (caption,), None)


@pytest.mark.parametrize(
    ("columns", "row", "found"),
    [
        ("image_name comment_number comment", ["a.jpg", "0", "a dog"], ("image_name", ["comment"], None)),
        ("file_name split caption_0 caption_1", ["a.jpg", "val", "x", "y"],
         ("file_name", ["caption_0", "caption_1"], "split")),
        ("image caption caption2", ["a.jpg", "x", "y"], ("image", ["caption", "caption2"], None)),
        ("image_id file_name caption", ["17", "a.jpg", "x"], ("file_name", ["caption"], None)),
        ("url filepath text title", ["http://a/b.jpg", "a.jpg", "x", "y"], ("filepath", ["text"], None)),
        ("image caption phase", ["a.jpg", "x", "Train"], ("image", ["caption"], "phase")),  # holds splits only
        ("image caption set", ["a.jpg", "x", "17"], ("image", ["caption"], None)),  # and does not
    ],
)  # fmt: skip
def test_find_columns__of_several(columns: str, row: list[str], found: tuple[str, list[str], str | None]) -> None:
    assert find(columns.split(), [row]) == Columns(found[0], tuple(found[1]), found[2])


def test_find_columns__the_one_whose_pictures_are_there() -> None:
    row = ["/elsewhere/a.jpg", "a.jpg", "x"]
    assert find(["path", "image", "caption"], [row]) == Columns("path", ("caption",), None)
    assert find(["path", "image", "caption"], [row], there=["a.jpg"]) == Columns("image", ("caption",), None)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (["a.jpg", "a dog"], ("1", "2", None)),
        (["a dog", "a.jpg"], ("2", "1", None)),
        (["a.jpg", "a dog", "train"], ("1", "2", "3")),
        (["test", "a dog", "a.jpg"], ("3", "2", "1")),
        (["a.jpg", "0", "a dog"], ("1", "3", None)),  # Flickr30k's number of the caption
        (["17", "a dog"], ("1", "2", None)),
        (["a.jpg", "a dog", ""], ("1", "2", None)),
    ],
)
def test_find_columns__without_a_header(row: list[str], found: tuple[str, str, str | None]) -> None:
    names = [str(place) for place in range(1, len(row) + 1)]
    assert find(names, [row], header=False) == Columns(found[0], (found[1],), found[2])


@pytest.mark.parametrize(
    ("columns", "row", "header", "says"),
    [
        (["foo", "bar baz"], ["a.jpg", "a dog"], True,
         "has the columns foo, bar baz: say which holds the images by "
         "data.columns='{image: foo, caption: \"bar baz\"}'"),
        (["größe", "it's"], ["a.jpg", "a dog"], True,
         "data.columns='{image: \"größe\", caption: \"it'\"'\"'s\"}'"),  # Hydra wants quotes, the shell others
        (["bar", "foo"], ["a dog", "a.jpg"], True, "data.columns='{image: foo, caption: bar}'"),
        (["image", "satz"], ["a.jpg", "a dog"], True, "captions by data.columns='{image: image, caption: satz}'"),
        (["1", "2", "3"], ["a.jpg", "red", "round"], False, "data.columns='{image: 1, caption: 2}', and put quotes"),
        (["image", "caption"], ["a dog", "a.jpg"], True,
         "'image' names no images, and 'caption' does: correct the header, or give data.columns='{image: caption, c"),
        (["image", "caption"], ["http://x/a.jpg", "a dog"], True, "holds addresses, which are not fetched"),
        (["image", "caption", "caption"], ["a.jpg", "a", "b"], True, "several columns named caption: rename them"),
    ],
)  # fmt: skip
def test_find_columns__asked_for(columns: list[str], row: list[str], header: bool, says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        find(columns, [row], header=header)


def test_find_columns__as_the_user_says() -> None:
    columns, row = ["foo", "bar", "part", "image"], ["a.jpg", "a dog", "x", "b.jpg"]
    assert find(columns, [row], given={"image": "foo", "caption": "Bar"}) == Columns("foo", ("bar",), None)
    assert find(columns, [row], given={"image": 1, "caption": [2, "image"]}) == Columns("foo", ("bar", "image"), None)
    assert find(columns, [row], given={"caption": "bar", "split": "part"}) == Columns("image", ("bar",), "part")
    with pytest.raises(ConfigError, match=r"data\.columns: t\.csv has no column 'nope' for caption: take one of foo, "):
        find(columns, [row], given={"image": "foo", "caption": "nope"})


def test_find_columns__pictures_in_the_table_itself() -> None:
    record = Line(1, {"caption": "a dog"}, "t.parquet: row 1")
    table = Table(Path("t.parquet"), "Parquet", ("caption",), True, iter([record]), ("image",))
    with pytest.raises(DataError, match=r"t\.parquet holds the images themselves \(image\), which are not read"):
        find_columns(table, [record], given=None, is_picture=bool, problems=Problems())

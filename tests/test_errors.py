"""What messages for people are made of."""

from __future__ import annotations

from mwa_lightning.errors import counted, shorten


def test_shorten__a_few_and_the_count_of_the_others() -> None:
    assert shorten(["a", "b"]) == "a, b"
    assert shorten("abcdefg") == "a, b, c, d and 3 more"


def test_counted() -> None:
    assert [counted(count, "image") for count in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
    assert [counted(count, "entry", "entries") for count in (1, 2)] == ["1 entry", "2 entries"]

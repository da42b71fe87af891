"""What messages for people are made of."""

from __future__ import annotations

from mwa_lightning.errors import shorten


def test_shorten__a_few_and_the_count_of_the_others() -> None:
    assert shorten(["a", "b"]) == "a, b"
    assert shorten("abcdefg") == "a, b, c, d and 3 more"

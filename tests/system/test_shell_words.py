"""Overrides in messages are what a shell hands to Hydra as it was meant."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwa_lightning.cli.config.overrides import parse_override
from mwa_lightning.system.shell_words import item, typed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("images/train", "data.images=images/train"),
        (".", "data.images=."),
        ("my images", "\"data.images='my images'\""),
        ("a,b", "\"data.images='a,b'\""),
        ("$HOME", "'data.images='\"'\"'$HOME'\"'\"''"),
    ],
)
def test_typed__in_quotes_only_where_it_needs_them(value: str, text: str) -> None:
    assert typed("data.images", value) == text
    printed = subprocess.run(["sh", "-c", f"printf %s {text}"], capture_output=True, check=True, text=True).stdout
    assert parse_override(printed).value() == value


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20))
def test_item__is_any_name(name: str) -> None:
    if "${" not in name and not name.isdecimal():
        assert parse_override(f"data.columns={{image: {item(name)}}}").value() == {"image": name}


@pytest.mark.parametrize("name", ["foto", "a.b", "x/y.csv", "Größe", "1a", "true", "it's", 'a"b', "a\\", "a b", "[x]"])
def test_item__names_that_people_give(name: str) -> None:
    assert parse_override(f"data.columns={{image: {item(name)}}}").value() == {"image": name}
    assert (item(name) == name) == (name in ("foto", "a.b", "x/y.csv"))

"""Files as plain data: what we write is read back, and nothing else comes in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mwa_lightning.system.plain_files import parse_json, read_yaml

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    # The ends of lines of Unicode are written as they are, and read as blanks.
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="$\x85\u2028\u2029")),
    st.sampled_from(["1e-5", "2026-01-31", "yes", "null", "0x10", "1:30", "~", "<<", "12_3", ".5e3", "- a", "a: b"]),
)
_KEYS = st.text("abcdef_", min_size=1, max_size=4)
_NODES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(_KEYS, _NODES, max_size=4))
def test_read_yaml__gives_back_what_was_written(content: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")
    assert read_yaml(file) == content


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("!!python/object/apply:os.system [id]", "could not determine a constructor .*os.system.*line 1"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: !!set {x, y}", "it holds a set"),
        ("a: !!binary aGk=", "it holds a bytes"),
        ("a: &x [1, 1]\nb: [*x, *x]", "refers from one place to another"),
        ("a: &x {b: 1}\nc: {<<: *x}", "refers from one place to another"),
        ("a: 1\na: 2", "the key a twice"),
        ("[1]: 2", "unhashable key"),
        ("1.5: 2", "the key 1.5, which is no word"),
        ("[" * 2_000, "nested too deep"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: [", "line 1"),
        ("\0", "special characters"),
        ("#" + "x" * (16 << 20), "longer than 16 MiB"),
    ],
)
def test_read_yaml__refuses_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said) as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000, "9" * 5000, "{"])
def test_parse_json__refuses(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)

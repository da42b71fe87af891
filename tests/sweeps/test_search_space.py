from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mwa_lightning.cli.grid import parse
from mwa_lightning.errors import ConfigError
from mwa_lightning.sweeps.search_space import corners, distribution, word


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("interval(0,0.5)", FloatDistribution(0, 0.5)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("range(16,64,16)", IntDistribution(16, 48, step=16)),
        ("range(64,16,-16)", IntDistribution(32, 64, step=16)),
        ("range(2,0.5,-0.5)", FloatDistribution(1.0, 2.0, step=0.5)),
        ("tag(log,range(1,65))", IntDistribution(1, 64, log=True)),
        ("range(0.5,2,0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
        ("choice(16,64)", CategoricalDistribution(["16", "64"])),
        ("1e-3,null", CategoricalDistribution(["0.001", "null"])),
        ("'a,b',c", CategoricalDistribution(["'a,b'", "c"])),
        ("glob(m*)", CategoricalDistribution(["modex", "mwa"])),
    ],
)
def test_distribution(values: str, expected: BaseDistribution) -> None:
    (override,) = parse([f"adapter={values}"])
    assert distribution(override) == expected


@given(
    start=st.decimals(-5, 5, places=2),
    step=st.decimals(-2, 2, places=2).filter(bool),
    count=st.integers(1, 12),
)
def test_distribution__has_what_a_sweep_has(start: Decimal, step: Decimal, count: int) -> None:
    """A range of fractions, up or down, and every value of it once: optuna counts in decimals, Hydra adds up floats."""
    (override,) = parse([f"optim.lr=range({start},{start + count * step - step / 2},{step})"])
    found = distribution(override)
    assert isinstance(found, FloatDistribution)
    assert found.step is not None
    values = [found.low + place * found.step for place in range(round((found.high - found.low) / found.step) + 1)]
    assert values == pytest.approx(sorted(float(value) for value in override.sweep_iterator()))
    assert found.high == float(max(start, start + (count - 1) * step))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (
            "tag(log,range(0.1,1,0.1))",
            "cannot be searched in: range() with tag(log,...) takes whole numbers in steps of 1; take interval()",
        ),
        (
            "tag(log,range(1,100,30))",
            "cannot be searched in: range() with tag(log,...) takes whole numbers in steps of 1",
        ),
        ("tag(log,interval(0,1))", "cannot be searched in: an interval with tag(log,...) begins above 0"),
        ("interval(2,1)", "names no value"),
        ("range(3,1)", "names no value"),
        ("glob(*)", "names no value"),
    ],
)
def test_distribution__refused(values: str, what: str) -> None:
    (override,) = parse([f"optim.lr={values}"])
    with pytest.raises(ConfigError, match=re.escape(f"optim.lr={values}: {what}")):
        distribution(override)


@pytest.mark.parametrize(
    ("value", "typed"), [(1e-5, "k=1e-05"), (0.1 + 0.2, "k=0.30000000000000004"), (7, "k=7"), ("'a,b'", "k='a,b'")]
)
def test_word__reads_back_as_the_same_value(value: Any, typed: str) -> None:
    assert word("k", value) == typed
    read = parse([typed])[0].value()
    assert read == (value if not isinstance(value, str) else "a,b")


def test_corners__all_combinations_or_each_value() -> None:
    space = {"a": CategoricalDistribution(["x", "y", "z"]), "b": FloatDistribution(0, 1), "c": IntDistribution(4, 4)}
    points = corners(space)
    assert len(points) == 6
    assert {"a": "z", "b": 1.0, "c": 4} in points
    few = corners(space, most=5)
    assert few == [
        {"a": "x", "b": 0.0, "c": 4},
        {"a": "y", "b": 0.0, "c": 4},
        {"a": "z", "b": 0.0, "c": 4},
        {"a": "x", "b": 0.0, "c": 4},
        {"a": "x", "b": 1.0, "c": 4},
        {"a": "x", "b": 0.0, "c": 4},
    ]

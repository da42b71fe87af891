"""What a search may try: Hydra's words for sweeps as optuna's distributions."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mwa_lightning.errors import ConfigError


def distribution(override: Override) -> BaseDistribution:
    """The values of one word.

    `a,b`, `choice(...)` and `glob(...)` are categories; `range(a,b,step)` ordered numbers, b left out as in Hydra;
    `interval(a,b)` every number between, `int(interval(a,b))` every whole number; `tag(log,...)` gives equal ratios
    equal shares. Raises ConfigError for what optuna has no distribution for.
    """
    value: Any = override._value
    nothing = ConfigError(f"{override.input_line}: names no value")
    try:
        if isinstance(value, IntervalSweep):
            log = "log" in value.tags
            assert value.start is not None
            assert value.end is not None
            if value.start > value.end:
                raise nothing
            if log and value.start <= 0:
                raise ValueError("an interval with tag(log,...) begins above 0")
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=log)
            return FloatDistribution(float(value.start), float(value.end), log=log)
        if isinstance(value, RangeSweep):
            numbers, log = list(value.range()), "log" in value.tags
            if not numbers:
                raise nothing
            start, step = Decimal(str(value.start)), Decimal(str(value.step))
            low, high = sorted((start, start + (len(numbers) - 1) * step))  # as typed: sums of fractions drift
            whole = isinstance(value.start, int) and isinstance(value.step, int)
            if log and not (whole and abs(step) == 1):
                raise ValueError("range() with tag(log,...) takes whole numbers in steps of 1; take interval()")
            if whole:
                return IntDistribution(int(low), int(high), step=int(abs(step)), log=log)
            return FloatDistribution(float(low), float(high), step=float(abs(step)))
        categories = list(override.sweep_string_iterator())
        if not categories:
            raise nothing
        return CategoricalDistribution(categories)
    except ValueError as error:
        raise ConfigError(f"{override.input_line}: cannot be searched in: {error}") from error


def word(key: str, value: Any) -> str:
    """A value as it is typed; categories are kept as such."""
    return f"{key}={value}" if isinstance(value, str) else f"{key}={value!r}"


def corners(space: Mapping[str, BaseDistribution], *, most: int = 64) -> list[dict[str, Any]]:
    """Points of the space that between them have every category and every end of an interval.

    All combinations where these are at most `most`; else each value beside the first ones of the other keys.
    """
    ends = {key: _ends(distribution) for key, distribution in space.items()}
    points: list[dict[str, Any]] = [{}]
    for key, values in ends.items():
        points = [{**point, key: value} for point in points for value in values]
        if len(points) > most:
            first = {key: values[0] for key, values in ends.items()}
            return [{**first, key: value} for key, values in ends.items() for value in values]
    return points


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return list(dict.fromkeys((distribution.low, distribution.high)))

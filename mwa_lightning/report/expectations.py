"""Published results, and how ours compare with them. No torch here: names are checked before loading."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from mwa_lightning.errors import ConfigError, ExpectationMissed


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a figure is of; without these two figures cannot be compared. `resolution` is in pixels."""

    model: str
    weights: str
    data: str
    split: str
    resolution: int | None
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published result: figures in percent, by our names without the split (`i2t_r1`, `accuracy`)."""

    name: str
    facts: Facts
    figures: Mapping[str, float]
    source: str
    verified: bool
    tolerance: float


class FigureRow(NamedTuple):
    """One figure of ours beside the published one."""

    figure: str
    ours: float
    published: float
    within: bool

    @property
    def difference(self) -> float:
        """Ours less the published one."""
        return self.ours - self.published


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours beside a published result."""

    published: Published
    ours: Facts
    rows: list[FigureRow]


def names() -> list[str]:
    """The names of all published results, in the order of the file."""
    return list(_table())


def published(name: str) -> Published:
    """One published result. Raises ConfigError, with the nearest name and the list, if there is none such."""
    table = _table()
    if name not in table:
        nearest = difflib.get_close_matches(name, table, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"expect={name}: no such published result; did you mean {nearest}? One of: {', '.join(table)}"
        )
    return table[name]


def compare(name: str, metrics: Mapping[str, float], ours: Facts, *, prefix: str = "test/") -> Comparison:
    """Set our metrics beside the published result `name`.

    Raises ConfigError if there is no such result, or if a figure of it was not measured here.
    """
    entry = published(name)
    missing = [figure for figure in entry.figures if prefix + figure not in metrics]
    if missing:
        raise ConfigError(
            f"expect={name}: this evaluation has no {prefix}{missing[0]}; the result is of "
            f"{entry.facts.data}, choose one of the same task"
        )
    rows = []
    for figure, value in entry.figures.items():
        measured = metrics[prefix + figure]
        # A billionth of a point for the rounding of the subtraction.
        rows.append(FigureRow(figure, measured, value, abs(measured - value) <= entry.tolerance + 1e-9))
    return Comparison(published=entry, ours=ours, rows=rows)


def check(comparison: Comparison) -> None:
    """Raise ExpectationMissed, naming the figure farthest off, if any lies outside the tolerance."""
    missed = [row for row in comparison.rows if not row.within]
    if missed:
        worst = max(missed, key=lambda row: abs(row.difference))
        entry = comparison.published
        raise ExpectationMissed(
            f"expect={entry.name}: {len(missed)} of {len(comparison.rows)} figures outside {entry.tolerance} "
            f"points; farthest {worst.figure}, ours {worst.ours:.2f}, published {worst.published:.2f}; "
            "compare weights, split, resolution and protocol above"
        )


@cache
def _table() -> dict[str, Published]:
    text = resources.files("mwa_lightning").joinpath("assets", "published.yaml").read_text(encoding="utf-8")
    table = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(table, dict)
    return {name: _entry(name, dict(fields)) for name, fields in table["results"].items()}


def _entry(name: str, fields: dict[str, Any]) -> Published:
    own = {key: fields.pop(key) for key in ("figures", "source", "verified", "tolerance")}
    return Published(name=name, facts=Facts(**fields), **own)

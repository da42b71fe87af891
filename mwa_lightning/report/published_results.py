"""Published results, and how ours compare with them. No torch here: names are checked before loading."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from mwa_lightning.errors import ConfigError, ExpectationMissed

# What two figures have to have in common, in the order in which it is shown.
FACTS = ("model", "weights", "data", "split", "resolution", "protocol")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a figure is of; without these two figures cannot be compared.

    `model`, `split` and `protocol` are for people; what they say is compared by `backbone` (its name in
    `configs/backbone`), `our_split` (its name for `split=`) with its `images`, `training` (`zero-shot`, `fine-tuned`,
    `adapted`) and `scores` (`cosine`, `re-ranked`, `argmax`). None: not stated, or not to be known. `resolution` is in
    pixels.
    """

    model: str
    backbone: str | None
    weights: str
    data: str
    split: str
    our_split: str | None
    images: int | None
    resolution: int | None
    protocol: str
    training: str | None
    scores: str | None


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

    @property
    def agreement(self) -> dict[str, bool | None]:
        """Whether each fact is the same on both sides, in the order of `FACTS`; None where that cannot be told."""
        ours, theirs = self.ours, self.published.facts
        # Other entries say where the weights come from, not which file they are.
        file = theirs.weights if theirs.weights.endswith(".pth") else None
        pairs: dict[str, list[tuple[object, object]]] = {
            "model": [(ours.backbone, theirs.backbone)],
            "weights": [(ours.weights, file)],
            "data": [(ours.data, theirs.data)],
            "split": [(ours.our_split, theirs.our_split), (ours.images, theirs.images)],
            "resolution": [(ours.resolution, theirs.resolution)],
            "protocol": [(ours.training, theirs.training), (ours.scores, theirs.scores)],
        }
        return {fact: _same(pairs[fact]) for fact in FACTS}

    @property
    def differing(self) -> list[str]:
        """The facts that are known not to be the same."""
        return [fact for fact, same in self.agreement.items() if same is False]


def names() -> list[str]:
    """The names of all published results, in the order of the file."""
    return list(_table())


def published(name: str) -> Published:
    """One published result. Raises ConfigError, with the nearest name and the list, if there is none such."""
    table = _table()
    if name not in table:
        nearest = difflib.get_close_matches(name, table, n=3, cutoff=0.0)
        raise ConfigError(
            f"expect={name}: no such published result; the nearest are {', '.join(nearest)}, and all "
            f"{len(table)} are in {_file()}"
        )
    return table[name]


def check_name(name: str, *, task: str, gives: Collection[str]) -> None:
    """Raise ConfigError if there is no such result, or one of another task; before anything is evaluated.

    `gives` are the metrics of the evaluation's task that published results can have.
    """
    entry = published(name)
    if not entry.figures.keys() & gives:
        raise ConfigError(
            f"expect={name}: has {next(iter(entry.figures))} of {entry.facts.data}, which task={task} does not give; "
            "choose one of the same task"
        )


def compare(name: str, metrics: Mapping[str, float], ours: Facts, *, prefix: str = "test/") -> Comparison:
    """Set our metrics beside the published result `name`, which is of the same task."""
    entry = published(name)
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
        entry, differing = comparison.published, comparison.differing
        advice = f"not of the same {_listed(differing)}" if differing else f"compare {_listed(FACTS)} above"
        raise ExpectationMissed(
            f"expect={entry.name}: {len(missed)} of {len(comparison.rows)} metrics outside {entry.tolerance} "
            f"points; farthest {worst.figure}, ours {worst.ours:.2f}, published {worst.published:.2f}; {advice}"
        )


def warning(comparison: Comparison) -> str | None:
    """What makes the comparison one of different things, in a line; None where nothing is known to differ."""
    if not comparison.differing:
        return None
    return (
        f"expect={comparison.published.name}: ours is not of the same {_listed(comparison.differing)} as the published "
        "result (see above), so near metrics prove nothing"
    )


def _same(pairs: Sequence[tuple[object, object]]) -> bool | None:
    """Whether all pairs of which both sides are known are equal; None where there is none such."""
    known = [one == other for one, other in pairs if one is not None and other is not None]
    return all(known) if known else None


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _file() -> Traversable:
    return resources.files("mwa_lightning").joinpath("assets", "published.yaml")


@cache
def _table() -> dict[str, Published]:
    text = _file().read_text(encoding="utf-8")
    table = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(table, dict)
    return {name: _entry(name, dict(fields)) for name, fields in table["results"].items()}


def _entry(name: str, fields: dict[str, Any]) -> Published:
    own = {key: fields.pop(key) for key in ("figures", "source", "verified", "tolerance")}
    return Published(name=name, facts=Facts(**fields), **own)

"""From the words of a sweep to the words of its jobs, by Hydra's own grammar and the order of its basic sweeper."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException

from mwa_lightning.cli.config.groups import group_options
from mwa_lightning.cli.config.overrides import parse_override
from mwa_lightning.errors import ConfigError
from mwa_lightning.system.shell_words import to_type


class _Menu:
    """What Hydra's globs (`adapter=glob(mwa*)`) look the choices of a group up in."""

    def get_group_options(self, group: str, results_filter: Any = None) -> list[str]:
        return list(group_options(group))


def parse(arguments: Iterable[str]) -> list[Override]:
    """Read words by Hydra's grammar. Raises ConfigError for one that is not understood or never ends."""
    parser = OverridesParser.create(config_loader=_Menu())  # type: ignore[arg-type]
    overrides = []
    for argument in arguments:
        try:
            # With a comma it is not known which values are meant: quotes would say.
            overrides += parser.parse_overrides([argument]) if "," in argument else [parse_override(argument, parser)]
        except HydraException as error:
            quotes = f"; where the commas belong to one value, type {to_type(argument)}" if "," in argument else ""
            raise ConfigError(
                f"{argument!r} is not understood: key=value or group=choice, several values as a,b or range(1,4), for "
                f"mwa-tune also as interval(1e-4,1e-2) or tag(log,interval(1e-4,1e-2)){quotes}"
            ) from error
        if isinstance(value := overrides[-1]._value, RangeSweep) and not value.step:
            raise ConfigError(f"{argument}: the step of range(from, to, step) is 0")
    return overrides


def split(arguments: Sequence[str], *, apart: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the words about the sweep itself (keys in `apart`, and what lies below them) from those of its jobs."""
    of_sweep: list[str] = []
    of_jobs: list[str] = []
    for argument, override in zip(arguments, parse(arguments), strict=True):
        own = override.key_or_group.partition(".")[0] in apart
        (of_sweep if own else of_jobs).append(argument)
    return of_sweep, of_jobs


def grid(arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of the values once, the last key changing fastest; of a key given twice the last counts.

    Raises ConfigError for what a grid cannot list.
    """
    values: dict[str, list[str]] = {}
    for argument, override in zip(arguments, parse(arguments), strict=True):
        key = override.get_key_element()
        values[key] = [argument] if not override.is_sweep_override() else [f"{key}={v}" for v in listed(override)]
        if not values[key]:
            raise ConfigError(f"{argument}: names no value")
    return list(dict.fromkeys(itertools.product(*values.values())))


def listed(override: Override) -> list[str]:
    """The values of a word that has several, as they are typed."""
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line}: is no list of values; write a,b or range(1,4), or search in it with mwa-tune"
        )
    try:
        return list(override.sweep_string_iterator())
    except HydraException as error:
        raise ConfigError(f"{override.input_line}: {error}") from error

"""The text of --help, put together from the YAML files, so that it cannot fall behind them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mwa_lightning.cli.config.groups import group_options, groups_of, key_comment
from mwa_lightning.cli.config.search_path import OURS, using

if TYPE_CHECKING:
    from mwa_lightning.cli.command import Command

_WIDTH = 110


def help_text(command: Command) -> str:
    """Return the help of `command`: how it is called, what can be chosen and set, and its flags."""
    groups = "\n".join(_groups(command.config_name))
    parts = [
        command.usage.strip(),
        *([f"Groups, one choice each (group=choice):\n{groups}"] if groups else []),
        "Keys (key=value); --cfg job prints all of them:\n" + "\n".join(_keys(command)),
        "Flags:\n" + "\n".join(f"  {flag:<22}{does}" for flag, does in _flags(command)),
        "Exit codes: 0; 1 the unexpected; 2 a mistake in what was given; 3 a published metric was missed;\n"
        "            4 a number was not finite; 75 stopped by a signal, to be started again; 130 stopped by Ctrl-C.",
    ]
    return "\n\n".join(parts)


def _flags(command: Command) -> Iterator[tuple[str, str]]:
    yield "--help", "this text"
    yield "--cfg job", "print the composed configuration and do nothing else"
    if command.sweep:
        yield "-m, --multirun", "a sweep; with --cfg job, print its jobs and do nothing else"
    if groups_of(command.config_name):
        yield "--config-dir DIR", "look for configs in DIR too: DIR/adapter/mine.yaml is adapter=mine"
        yield "--config-name NAME", "compose NAME.yaml, which has train in its list of defaults"
        yield "--info searchpath", "where configs are looked for; also config, defaults, defaults-tree"
    yield "--version", "print the version"


def _groups(config_name: str) -> Iterator[str]:
    for group, default in groups_of(config_name).items():
        listed = ", ".join(f"{name} (default)" if name == default else name for name in group_options(group))
        yield textwrap.fill(listed, _WIDTH, initial_indent=f"  {group:<11}", subsequent_indent=" " * 13)


def _keys(command: Command) -> Iterator[str]:
    with using(OURS):
        groups = groups_of(command.config_name)
    for key in command.main_keys:
        group, _, name = key.rpartition(".")
        file = f"{group}/{groups[group]}.yaml" if group else _file_of(command.config_name, name)
        value, comment = key_comment(file, name)
        yield textwrap.fill(f"{comment} [{value}]", _WIDTH, initial_indent=f"  {key:<36}", subsequent_indent=" " * 38)


def _file_of(config_name: str, key: str) -> str:
    """Return the file that has a key without a group: evaluate.yaml stands on train.yaml."""
    try:
        key_comment(f"{config_name}.yaml", key)
    except KeyError:
        return "train.yaml"
    return f"{config_name}.yaml"

"""What there is to choose from on the search path, as Hydra finds it: groups, choices, keys and their comments."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from hydra.types import RunMode
from omegaconf import OmegaConf

from mwa_lightning.cli.config.search_path import SearchPath, config_directory, current, loader, readable, source_of


def groups_of(config_name: str) -> dict[str, str | None]:
    """Return the groups of a configuration and the choice that each has unless told otherwise."""
    return _groups_of(current(), current().primary(config_name))


@cache
def _groups_of(search: SearchPath, config_name: str) -> dict[str, str | None]:
    with readable(config_name):
        found = loader(search).compute_defaults_list(config_name, [], RunMode.RUN).overrides.known_choices
    return {group: choice for group, choice in reversed(found.items()) if not group.startswith("hydra/")}


def group_options(group: str) -> tuple[str, ...]:
    """Return the names of the choices of a group."""
    return _group_options(current(), group)


@cache
def _group_options(search: SearchPath, group: str) -> tuple[str, ...]:
    return tuple(loader(search).get_group_options(group))


def content_of(group: str, choice: str) -> dict[str, Any]:
    """Return what the file of a choice holds, as plain data, without what it takes from other files."""
    return _content_of(current(), group, choice)


@cache
def _content_of(search: SearchPath, group: str, choice: str) -> dict[str, Any]:
    source = source_of(search, f"{group}/{choice}")
    assert source is not None
    with readable(f"{source.full_path()}/{group}/{choice}.yaml"):
        content = OmegaConf.to_container(source.load_config(f"{group}/{choice}").config)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def is_choice(group: str, choice: str) -> bool:
    """Whether a group has a choice, in a folder below it too."""
    return choice in group_options(group) or source_of(current(), f"{group}/{choice}") is not None


def choices_with(group: str, key: str) -> tuple[str, ...]:
    """Return the choices of a group whose files have a key at the top."""
    return tuple(choice for choice in group_options(group) if key in content_of(group, choice))


def key_comment(file: str, key: str) -> tuple[str, str]:
    """Return the value and the comment of `key` in a YAML file of ours; KeyError where the key has none."""
    text = (config_directory() / file).read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(key)}: (.*?) # (.*)$", text, flags=re.MULTILINE)
    if found is None:
        raise KeyError(f"{key} has no comment in {file}")
    return found.group(1), found.group(2)

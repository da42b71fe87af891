"""What there is to choose from, read from the YAML files alone: groups, choices, keys and their comments."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import yaml

_PACKAGE = Path(__file__).resolve().parent.parent


@cache
def config_directory() -> Path:
    """Return the folder of the YAML files: in the package where it was installed, beside it in a checkout."""
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"the configs of mwa_lightning are neither in {_PACKAGE} nor beside it: install it again")


@cache
def groups_of(config_name: str) -> dict[str, str | None]:
    """Return the groups of a configuration and the choice that each has unless told otherwise."""
    groups: dict[str, str | None] = {}
    for entry in yaml.safe_load(_read(f"{config_name}.yaml"))["defaults"]:
        if isinstance(entry, dict):
            for group, choice in entry.items():
                groups[group.removeprefix("optional ")] = choice
        elif entry != "_self_":
            groups.update(groups_of(entry))
    return groups


@cache
def group_options(group: str) -> tuple[str, ...]:
    """Return the names of the choices of a group."""
    return tuple(sorted(path.stem for path in (config_directory() / group).glob("*.yaml")))


@cache
def choices_with(group: str, key: str) -> tuple[str, ...]:
    """Return the choices of a group whose files have a key at the top."""
    files = {choice: yaml.safe_load(_read(f"{group}/{choice}.yaml")) for choice in group_options(group)}
    return tuple(choice for choice, content in files.items() if key in content)


def key_comment(file: str, key: str) -> tuple[str, str]:
    """Return the value and the comment of `key` in a YAML file; KeyError where the key has none."""
    found = re.search(rf"^{re.escape(key)}: (.*?) # (.*)$", _read(file), flags=re.MULTILINE)
    if found is None:
        raise KeyError(f"{key} has no comment in {file}")
    return found.group(1), found.group(2)


def _read(file: str) -> str:
    return (config_directory() / file).read_text(encoding="utf-8")

"""What a file may have done that came from elsewhere: what a config on the search path, or the command line, says too.

A run directory, a sweep's record and an adapter are data. No class that they name is imported, no `${...}` resolved,
no other machine asked for a name of theirs, unless one of the configs that the user composes from names it as well.
Local paths are followed: they are read, and never run.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mwa_lightning.cli.config.groups import content_of, group_options
from mwa_lightning.cli.config.search_path import SearchPath, config_directory, current, our_groups
from mwa_lightning.errors import ConfigError
from mwa_lightning.system.plain_files import words_in

_ELSEWHERE = re.compile(r"[A-Za-z][\w+.-]*://")
_SHIPPED = "asset://"
TARGET = "_target_"


def targets_of(group: str) -> dict[str, str]:
    """The classes that the configs of a group name, each with the choice that does."""
    found: dict[str, str] = {}
    for choice in group_options(group):
        content = content_of(group, choice)
        if TARGET in content:
            found.setdefault(str(content[TARGET]), choice)
    return found


def _keys_of(group: str) -> frozenset[str]:
    """The keys that any config of a group has."""
    return frozenset(key for choice in group_options(group) for key in content_of(group, choice))


@cache
def _names_elsewhere(search: SearchPath) -> frozenset[str]:
    """What configs on the search path name on other machines; of ours, comments included."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(config_directory().rglob("*.yaml"))]
    words = [word.rstrip(".,;)") for text in texts for word in text.split()]
    if search.further:
        groups = {group: group_options(group) for group in our_groups()}
        contents = [content_of(group, choice) for group, choices in groups.items() for choice in choices]
        words += [text for content in contents for _, text in words_in(content)]
    return frozenset(word for word in words if _ELSEWHERE.match(word))


def check_saved(saved: Mapping[str, Any], *, origin: Path, typed: Container[str] = ()) -> None:
    """Raise ConfigError if a saved configuration names what no config does; keys that were `typed` are left out.

    `saved` has whole groups by their names.
    """
    for key, text in words_in({name: value for name, value in saved.items() if name != "hydra"}):
        group, _, name = key.partition(".")
        if key in typed:
            continue
        check_text(text, what=f"{origin}: {key}", instead=f"give {key}=... on the command line")
        if key.rpartition(".")[2] == TARGET and (name != TARGET or text not in targets_of(group)):
            raise ConfigError(
                f"{origin} names the class {text} as {key}, and no config of the group {group} does: it is not "
                f"followed; choose {group}= on the command line{_add_path(saved)}"
            )
    task = saved["task"].get("name") if "task" in saved else None
    if task is not None and task not in group_options("task"):
        raise ConfigError(f"{origin} is of task={task}, and there is no such config: choose task= on the command line")
    for name, value in saved.get("trainer", {}).items():
        if f"trainer.{name}" not in typed and name not in _keys_of("trainer") and isinstance(value, str | list | dict):
            raise ConfigError(
                f"{origin} adds trainer.{name}={value}, which no config of the group trainer has: give "
                f"+trainer.{name}=... on the command line, or choose trainer= there"
            )


def _add_path(saved: Mapping[str, Any]) -> str:
    """What to add to a command whose run was composed along a longer search path, as far as its file says so."""
    noted = saved.get("hydra")
    path = noted.get("searchpath") if isinstance(noted, Mapping) else None
    if not isinstance(path, list) or not path:
        return ""
    return f", or add {' '.join(SearchPath(tuple(map(str, path))).words())}, where the run found it"


def check_text(text: str, *, what: str, instead: str) -> None:
    """Raise ConfigError if a text of a file would be resolved, or names what is on another machine and in no config.

    `what` says where it is, `instead` what to do.
    """
    if "${" in text or text == "???":
        raise ConfigError(f"{what} is {text!r}, and ${{...}} and ??? in a file are not followed: {instead}")
    if _ELSEWHERE.match(text) and not text.startswith(_SHIPPED) and text not in _names_elsewhere(current()):
        raise ConfigError(
            f"{what} is {text}, on another machine, and no config names it: it is not asked for; {instead}"
        )


def check_noted(noted: Mapping[str, Any], *, origin: Path) -> None:
    """Raise ConfigError if notes of an earlier start would reach further than this machine."""
    for key, text in words_in(dict(noted)):
        check_text(text, what=f"{origin}: {key}", instead="choose another run_dir")


def check_words(words: Iterable[str], *, origin: Path) -> None:
    """Raise ConfigError if words of a command that a file records would reach further than this machine."""
    for word in words:
        instead = "type the words of the command again"
        check_text(word, what=f"{origin}: {word.partition('=')[0]}", instead=instead)
        check_text(word.partition("=")[2].strip("'\""), what=f"{origin}: {word.partition('=')[0]}", instead=instead)

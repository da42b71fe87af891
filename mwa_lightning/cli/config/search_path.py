"""Where configs are looked for: in ours, and in what --config-dir, --config-name and hydra.searchpath= add.

Hydra's own config loader looks there, first in ours. A command has one search path, from its flags to its end.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.config_source import ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mwa_lightning.cli.config.suggesting import did_you_mean, path_meant
from mwa_lightning.errors import ConfigError, shorten
from mwa_lightning.own_modules import make_importable
from mwa_lightning.system.shell_words import item

SEARCH_PATH = "hydra.searchpath"

_PACKAGE = Path(__file__).resolve().parents[2]
_FILE = "file://"
# Commands whose configuration --config-name replaces.
_REPLACEABLE = ("train", "evaluate")


@dataclass(frozen=True, eq=False)
class SearchPath:
    """What stands on the search path after our configs, folders as absolute paths, and who the primary config is."""

    further: tuple[str, ...] = ()
    config_name: str | None = None

    def primary(self, config_name: str) -> str:
        """The primary config in the place of ours."""
        return self.config_name if self.config_name and config_name in _REPLACEABLE else config_name

    def words(self) -> list[str]:
        """The words of a command that say the same."""
        folders = [f"--config-dir={path}" for path in self.further if "://" not in path]
        others = [path for path in self.further if "://" in path]
        return [
            *folders,
            *([f"{SEARCH_PATH}=[{','.join(map(item, others))}]"] if others else []),
            *([f"--config-name={self.config_name}"] if self.config_name else []),
        ]


OURS = SearchPath()
_current: ContextVar[SearchPath] = ContextVar("search path", default=OURS)


def current() -> SearchPath:
    """The search path of the command that runs."""
    return _current.get()


@contextmanager
def using(search: SearchPath) -> Iterator[None]:
    """Look for configs along a search path."""
    token = _current.set(search)
    try:
        yield
    finally:
        _current.reset(token)


def search_path_of(
    config_dirs: Iterable[str | Path] = (), further: Any = (), config_name: str | None = None
) -> SearchPath:
    """The search path of --config-dir, hydra.searchpath= and --config-name.

    Raises ConfigError for a folder or package that is not there, that holds nothing which is looked for, or whose
    config has the name of another on the path, which would be found in its place.
    """
    given: dict[str, str] = {}
    for each in config_dirs:
        given.setdefault(_folder(f"--config-dir={each}", str(each)), f"--config-dir={each}")
    given |= {path: word for path, word in _places(further, SEARCH_PATH) if path not in given}
    search = SearchPath(tuple(given))
    if config_name is not None:
        config_name = config_name.removesuffix(".yaml")
        said = _said_by_primary(config_name, search)
        given |= {path: word for path, word in _places(said, f"{config_name}.yaml: {SEARCH_PATH}") if path not in given}
        search = SearchPath(tuple(given), config_name)
    _check(search, given)
    return search


@cache
def config_directory() -> Path:
    """Return the folder of our YAML files: in the package where it was installed, beside it in a checkout."""
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"the configs of mwa_lightning are neither in {_PACKAGE} nor beside it: install it again")


@cache
def loader(search: SearchPath) -> ConfigLoader:
    """Hydra's config loader of a search path. Raises ConfigError if Hydra cannot read it."""
    Plugins.instance().register(_Further)
    with readable("search path"), using(search), outside_hydra(), _initialized():
        return GlobalHydra.instance().config_loader()


@contextmanager
def outside_hydra() -> Iterator[None]:
    """Set aside the Hydra of an application that calls us: a process has but one at a time."""
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        # Hydra may have put another instance in the place of the first.
        GlobalHydra.instance().hydra = theirs


def show_info(what: str, config_name: str, overrides: Sequence[str]) -> None:
    """Print what Hydra's --info prints. Raises ConfigError for overrides that do not compose."""
    Plugins.instance().register(_Further)
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    with readable(f"--info {what}"), outside_hydra(), _initialized():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            hydra.show_info(what, config_name=current().primary(config_name), overrides=list(overrides))
        finally:  # Hydra prints by a log, which it leaves open
            root.level, root.handlers = level, handlers


def sources(search: SearchPath) -> list[ConfigSource]:
    """Where configs are looked for, in order, without Hydra's own."""
    return [source for source in loader(search).get_sources() if source.provider not in ("hydra", "schema")]


def source_of(search: SearchPath, config: str) -> ConfigSource | None:
    """The first place that has a config such as `adapter/mwa`, None if there is none."""
    return next((source for source in sources(search) if source.is_config(config)), None)


class _Further(SearchPathPlugin):
    """Puts on Hydra's search path what the current one has besides ours."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append, as Hydra does with --config-dir."""
        for path in current().further:
            search_path.append(provider="command-line", path=path if "://" in path else f"{_FILE}{path}")


def _initialized() -> initialize_config_dir:
    return initialize_config_dir(version_base="1.3", config_dir=str(config_directory()))


def _places(said: Any, key: str) -> Iterator[tuple[str, str]]:
    """The folders and packages of a list, and the word that each of them stands in. Raises ConfigError."""
    if isinstance(said, str) or not isinstance(said, Iterable) or not all(isinstance(each, str) for each in said):
        raise ConfigError(f"{key}: want a list of folders and packages, [file://DIR,pkg://PACKAGE]")
    for each in said:
        word = f"{key}=[{each}]"
        if each.startswith("pkg://"):
            make_importable(each.removeprefix("pkg://"))
            yield each, word
        elif "://" in each and not each.startswith(_FILE):
            raise ConfigError(f"{word}: want file://DIR or pkg://PACKAGE")
        else:
            yield _folder(word, each.removeprefix(_FILE)), word


def _folder(word: str, given: str) -> str:
    """A folder that is there, as an absolute path. Raises ConfigError."""
    path = os.path.normpath(Path(given).expanduser().absolute())
    if not given or not Path(path).is_dir():
        raise ConfigError(f"{word}: there is no such folder.{path_meant(path) if given else ''}")
    return path


def our_groups() -> list[str]:
    """The groups that our configs have."""
    return sorted(path.name for path in config_directory().iterdir() if path.is_dir() and path.name != "__pycache__")


def _said_by_primary(config_name: str, search: SearchPath) -> Any:
    """What a primary config adds to the search path in its file. Raises ConfigError if there is no such config."""
    source = source_of(search, config_name)
    if source is None:
        names = dict.fromkeys(name for each in sources(search) for name in _listed(each, ""))
        raise ConfigError(
            f"--config-name={config_name}: there is no such config on the search path."
            f"{did_you_mean(config_name, names)} It has {', '.join(names)}; --config-dir=DIR adds a folder"
        )
    with readable(config_name):
        return OmegaConf.select(source.load_config(config_name).config, SEARCH_PATH) or []


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turns what is wrong with a YAML file, or with what it composes, into a ConfigError that names it."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        said = error.__cause__ if isinstance(error, ConfigCompositionException) and not str(error) else error
        raise ConfigError(f"{what}: {said}") from error


def _check(search: SearchPath, given: dict[str, str]) -> None:
    ours, *others = sources(search)
    for source, word in zip(others, given.values(), strict=True):
        if not source.available():
            raise ConfigError(f"{word}: there is no such package that can be imported; install it, or give a folder")
    found = {("", name): ours for name in ours.list("", ObjectType.CONFIG)}
    found |= {(group, name): ours for group in our_groups() for name in ours.list(group, ObjectType.CONFIG)}
    for source, word in zip(others, given.values(), strict=True):
        listed = [(group, name) for group in ("", *our_groups()) for name in _listed(source, group)]
        if not any(group or name == search.config_name for group, name in listed):
            folders = [name for name in _listed(source, "", ObjectType.GROUP) if not name.startswith((".", "_"))]
            hint = next((hint for name in folders if (hint := did_you_mean(name, our_groups()))), "")
            has = f"; it has {shorten(folders)}.{hint}" if folders else ""
            raise ConfigError(
                f"{word}: holds no group of configs, such as adapter/NAME.yaml; groups are "
                f"{', '.join(our_groups())}{has}"
            )
        for place in listed:
            first = found.setdefault(place, source)
            if first is not source and place[0]:
                group, name = place
                raise ConfigError(
                    f"{word}: its {group}/{name}.yaml would not be found, {first.full_path()} has one too and stands "
                    "before it; give it another name"
                )


def _listed(source: ConfigSource, group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
    return source.list(group, kind) if not group or source.is_group(group) else []

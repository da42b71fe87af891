"""From the words after the command to a configuration: the groups by Hydra, then the keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mwa_lightning.cli.config.groups import choices_with, group_options, groups_of, is_choice
from mwa_lightning.cli.config.overrides import parse_override, typed_value
from mwa_lightning.cli.config.schema import as_typed, check_values, is_ours, rule_of
from mwa_lightning.cli.config.search_path import OURS, SearchPath, current, loader, readable, source_of, using
from mwa_lightning.cli.config.suggesting import did_you_mean
from mwa_lightning.errors import ConfigError, shorten
from mwa_lightning.system.plain_files import read_yaml
from mwa_lightning.system.shell_words import to_type

# Keys may be added: those of Lightning's Trainer, of which the YAML files name but some, and callbacks by any name.
ADDABLE = ("trainer.", "callbacks.")
# Groups of ours whose choices name a class; each of its keys is an argument of the class or read by us.
PARTS = ("backbone", "adapter", "task", "data")
# Loggers of ours, by the `name` in their files; of any other the file names the class.
LOGGERS = ("csv", "tensorboard", "wandb")
# What says what was chosen: read by us, and never taken away.
_IDENTITY = ("_target_", "name", "layout", "official", "checkpoint")


@dataclass(frozen=True)
class Request:
    """What the command line asked for, by Hydra's grammar.

    `choices` of groups, `values` of keys (`key=`, and `++key=`, which are `forced`), keys that are `added` (`+key=`) or
    `removed` (`~key`), and words about the list of defaults itself (`+group=`, `~group`, `group@package=`).
    """

    choices: dict[str, str | None]
    values: dict[str, Any]
    added: dict[str, Any]
    forced: frozenset[str] = frozenset()
    removed: dict[str, Any] = field(default_factory=dict)
    defaults: tuple[str, ...] = ()


def read_request(arguments: Sequence[str], *, config_name: str) -> Request:
    """Sort the words of a command; choices of groups are checked here, keys in `apply`."""
    request = Request(choices={}, values={}, added={})
    groups = groups_of(config_name)
    forced: set[str] = set()
    defaults: list[str] = []
    for argument in arguments:
        override = _parse(argument)
        key = override.key_or_group
        if override.is_sweep_override():
            sweep = "; several are a sweep, which --multirun starts" if config_name == "train" else ""
            comma = f". If the comma belongs to the value, type {to_type(argument)}" if "," in argument else ""
            raise ConfigError(f"{argument}: give one value{sweep}{comma}")
        value = None if override.is_delete() else as_typed(key, override.value(), typed_value(argument))
        if key in groups and override.is_delete() and override.package is None:
            if groups[key] is not None:
                raise ConfigError(f"{argument}: a run needs one, so none can be removed; choose another {key}=")
            request.choices[key] = None
        elif key in groups and override.package is None and not override.is_add():
            request.choices[key] = _choice(argument, key, value)
        elif override.package is not None or group_options(key):
            if not override.is_delete() and value is not None:
                _choice(argument, key, value)
            defaults.append(str(override.input_line))
        elif override.is_delete():
            request.removed[key] = override.value()
        elif override.is_add():
            request.added[key] = value
        else:
            request.values[key] = value
            if override.is_force_add():
                forced.add(key)
    return replace(request, forced=frozenset(forced), defaults=tuple(defaults))


def compose_command(config_name: str, arguments: list[str]) -> DictConfig:
    """The configuration of a command that is its groups and keys and nothing else. Raises ConfigError."""
    request = read_request(arguments, config_name=config_name)
    config = compose_groups(config_name, request.choices, request.defaults)
    apply(config, request)
    return config


def compose_groups(config_name: str, choices: dict[str, str | None], defaults: Sequence[str] = ()) -> DictConfig:
    """Compose the groups, and name the configuration after what was chosen.

    `defaults` are further words about the list of defaults, as Hydra has them.
    """
    return deepcopy(_compose_groups(current(), config_name, tuple(choices.items()), tuple(defaults)))


@cache
def _compose_groups(
    search: SearchPath, config_name: str, choices: tuple[tuple[str, str | None], ...], defaults: tuple[str, ...]
) -> DictConfig:
    """Compose the groups; the jobs of a sweep mostly choose the same ones."""
    overrides = [f"~{group}" if choice is None else f"{group}={choice}" for group, choice in choices]
    overrides += defaults
    primary = search.primary(config_name)
    with readable(" ".join(overrides) or primary):
        config = loader(search).load_configuration(primary, overrides, RunMode.RUN, from_shell=False)
    made = config.hydra.runtime.choices  # as an experiment left them
    with open_dict(config):
        del config["hydra"]
        if search.further:  # to say where its classes were named, should the configuration be used without
            config.hydra = {"searchpath": list(search.further)}
    if missing := [key for key in _needed(config_name) if key not in config]:
        raise ConfigError(f"{primary}: has no {missing[0]}; name {config_name} in its list of defaults")
    for group in PARTS:
        if group in config and config[group] is not None:
            _check_part(config, group, made.get(group))
    if "logger" in config and "_target_" not in config.logger and str(config.logger.get("name")) not in LOGGERS:
        _check_part(config, "logger", made.get("logger"))
    if "name" in config and config.name is None:
        config.name = made.get("experiment") or "_".join(
            str(made[group]).replace("/", "_") for group in ("adapter", "backbone", "data")
        )
    return config


def _needed(config_name: str) -> list[str]:
    """The keys that a command's own configuration has, groups among them."""
    with using(OURS):
        groups = [group for group, choice in groups_of(config_name).items() if choice is not None]
        source = source_of(OURS, config_name)
        assert source is not None
        return [*groups, *(str(key) for key in source.load_config(config_name).config if key != "defaults")]


def _check_part(config: DictConfig, group: str, choice: str | None) -> None:
    """Raise ConfigError unless a group is the node of a class; what we read of any class has its default."""
    node = config[group]
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        raise ConfigError(
            f"{group}={choice}: its file names no class; write _target_: MODULE.CLASS at its beginning and the class's "
            "options below"
        )
    if group == "adapter" and "checkpoint" not in node:
        with open_dict(node):
            node.checkpoint = None


def apply(config: DictConfig, request: Request) -> None:
    """Set, add and remove the keys that were asked for, resolve interpolations and check every value, in place.

    Raises ConfigError for a key that does not exist, naming the nearest, and for a value that cannot be.
    """
    existing = list(_keys(OmegaConf.to_container(config)))
    for key, value in request.values.items():
        there = key in existing or (isinstance(value, dict) and isinstance(OmegaConf.select(config, key), DictConfig))
        if not there and key not in request.forced:
            raise ConfigError(f"there is no key {key!r} in the configuration.{_key_meant(key, existing)}")
        group, _, rest = key.rpartition(".")
        if group and rest == "name" and value != OmegaConf.select(config, key) and _is_ours(config, group):
            raise ConfigError(f"{key}={value}: it only says what was chosen; take {group}={value}")
        if there:
            _set(config, key, value)
        else:
            _add(config, f"++{key}", value, existing)
    for key, value in request.added.items():
        there = OmegaConf.select(config, key, throw_on_missing=False) is not None
        if (
            there and not isinstance(value, dict | list) and not key.startswith(ADDABLE)
        ):  # a saved run has those it added
            raise ConfigError(f"+{key}: the key {key!r} is there already, write {key}=... without +")
        _add(config, f"+{key}", value, existing)
    for key, value in request.removed.items():
        _remove(config, key, value, existing)
    _check_callbacks(config)
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the ${{...}} of {_unresolved(config)} cannot be resolved: {_first_line(error)}") from error
    for key in sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{key}=???: stands for a value that is still missing; give one")
    check_values(config)


def _check_callbacks(config: DictConfig) -> None:
    """Raise ConfigError if a key of `callbacks` is neither one of ours nor the node of a class."""
    for name, node in config.get("callbacks", {}).items():
        key = f"callbacks.{name}"
        names_class = isinstance(node, DictConfig) and isinstance(node.get("_target_"), str)
        if rule_of(config, key) is None and not names_class:
            raise ConfigError(
                f"{key}: is no setting of ours and names no class; a callback is {key}._target_=MODULE.CLASS, and its "
                f"options are {key}.OPTION=..."
            )


def _add(config: DictConfig, word: str, value: Any, existing: Sequence[str]) -> None:
    """Add a key, as Hydra does; but what only our own code would read, and does not know, is a mistake."""
    key = word.lstrip("+")
    group = key.partition(".")[0]
    read_by_class = isinstance(config.get(group), DictConfig) and "_target_" in config[group]
    if group in config and group != "hydra" and not key.startswith(ADDABLE) and not read_by_class:
        hint = _key_meant(key, existing)
        raise ConfigError(f"{word}: there is no such key, and nothing would read it: {group} names no class.{hint}")
    with open_dict(config):
        _set(config, key, value)


def _remove(config: DictConfig, key: str, value: Any, existing: Sequence[str]) -> None:
    """Take a key away, as Hydra does, so that the class's own default holds; keys that we read have to be there."""
    node = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
    name = key.rpartition(".")[2]
    if not isinstance(node, DictConfig) or name not in node:
        raise ConfigError(f"~{key}: there is no such key.{_key_meant(key, existing)}")
    if value is not None and value != node[name]:
        raise ConfigError(f"~{key}={value}: its value is {node[name]}")
    if rule_of(config, key) is not None or name in _IDENTITY or isinstance(node[name], DictConfig):
        raise ConfigError(
            f"~{key}: is read in every run, so it cannot be removed; set {key}=null where null is allowed"
        )
    with open_dict(node):
        del node[name]


def _is_ours(config: DictConfig, group: str) -> bool:
    node = OmegaConf.select(config, group)
    return not isinstance(node, DictConfig) or is_ours(node.get("_target_"))


def _key_meant(key: str, existing: Sequence[str]) -> str:
    """Which choice of its group has a key, or the nearest key that can be set, or where all of them are listed."""
    group, _, name = key.partition(".")
    if having := [f"{group}={choice}" for choice in choices_with(group, name)]:
        return f" It is one of {shorten(having)}."
    settable = [each for each in existing if not ("." in each and each.endswith((".name", "._target_", ".official")))]
    return did_you_mean(key, settable) or " --cfg job prints all keys."


def _unresolved(config: DictConfig) -> str | None:
    """The first key whose interpolation cannot be resolved."""
    for key in _keys(OmegaConf.to_container(config)):
        try:
            OmegaConf.select(config, key)
        except OmegaConfBaseException:
            return key
    return None


def load_saved(path: Path) -> dict[str, Any]:
    """Read the config.yaml of a run as plain data. Raises ConfigError."""
    try:
        config = read_yaml(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist: give run= a directory that mwa-train left, with config.yaml in it"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give run= what mwa-train left") from error
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise ConfigError(f"{path} is not the configuration of a run: it holds no keys")
    return config


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key that holds a value, not further keys."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _keys(value, prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _parse(argument: str) -> Override:
    try:
        return parse_override(argument)
    except HydraException as error:
        if "=" not in argument:
            raise ConfigError(f"{argument!r} is not understood: write key=value, or --help") from error
        raise ConfigError(
            f"{argument!r} is not understood: a quote in it does not end, or the key has characters that no key has; "
            "write key=value, with quotes inside of the shell's as \"key='value'\""
        ) from error


def _choice(argument: str, group: str, value: Any) -> str | None:
    options = group_options(group)
    listed = f"{group} is one of {', '.join(options)}."
    if isinstance(value, list | dict):
        raise ConfigError(f"{argument}: choose one, not a list. {listed}")
    if value is None and group == "experiment":
        return None
    if not is_choice(group, str(value)):
        raise ConfigError(
            f"there is no {group}={'null' if value is None else value}.{did_you_mean(str(value), options)} {listed}"
        )
    return str(value)


def _set(config: DictConfig, key: str, value: Any) -> None:
    try:
        OmegaConf.update(config, key, value, merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}={value} cannot be set: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

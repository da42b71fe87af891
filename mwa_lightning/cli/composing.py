"""From the words after the command to a configuration: the groups by Hydra, then the keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mwa_lightning.cli.menu import choices_with, config_directory, group_options, groups_of
from mwa_lightning.cli.overrides import parse_override, typed_value
from mwa_lightning.cli.schema import as_typed, check_values
from mwa_lightning.cli.suggesting import did_you_mean
from mwa_lightning.errors import ConfigError, shorten
from mwa_lightning.plain_files import read_yaml
from mwa_lightning.shell_words import to_type

# Its keys are those of a class of another library, of which the YAML files name but some.
ADDABLE = "trainer."


@dataclass(frozen=True)
class Request:
    """What the command line asked for: choices of groups, values of keys, keys to add."""

    choices: dict[str, str | None]
    values: dict[str, Any]
    added: dict[str, Any]


def read_request(arguments: Sequence[str], *, config_name: str) -> Request:
    """Sort `group=choice`, `key=value` and `+key=value`; choices are checked here, keys in `apply`."""
    request = Request(choices={}, values={}, added={})
    groups = groups_of(config_name)
    for argument in arguments:
        override = _parse(argument)
        key = override.key_or_group
        if override.is_delete():
            instead = f"choose another {key}=" if key in groups else f"set {key}=null where null is allowed"
            raise ConfigError(f"{argument}: nothing can be removed; {instead}")
        if override.is_sweep_override():
            sweep = "; several are a sweep, which --multirun starts" if config_name == "train" else ""
            comma = f". If the comma belongs to the value, type {to_type(argument)}" if "," in argument else ""
            raise ConfigError(f"{argument}: give one value{sweep}{comma}")
        value = as_typed(key, override.value(), typed_value(argument))
        if override.package is not None:
            raise ConfigError(f"{argument}: '@' is not supported; write {key}=...")
        if key in groups:
            request.choices[key] = _choice(argument, key, value)
        elif override.is_add():
            request.added[key] = value
        else:
            request.values[key] = value
    return request


def compose_command(config_name: str, arguments: list[str]) -> DictConfig:
    """The configuration of a command that is its groups and keys and nothing else. Raises ConfigError."""
    request = read_request(arguments, config_name=config_name)
    config = compose_groups(config_name, request.choices)
    apply(config, request)
    return config


def compose_groups(config_name: str, choices: dict[str, str | None]) -> DictConfig:
    """Compose the groups, and name the configuration after what was chosen."""
    return deepcopy(_compose_groups(config_name, tuple(choices.items())))


@cache
def _compose_groups(config_name: str, choices: tuple[tuple[str, str | None], ...]) -> DictConfig:
    """Compose the groups; the jobs of a sweep mostly choose the same ones."""
    overrides = [f"{group}={'null' if choice is None else choice}" for group, choice in choices]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_directory())):
            config = compose(config_name=config_name, overrides=overrides, return_hydra_config=True)
    except HydraException as error:
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error
    made = config.hydra.runtime.choices  # as an experiment left them
    with open_dict(config):
        del config["hydra"]
    if "name" in config and config.name is None:
        config.name = made.get("experiment") or f"{made.adapter}_{made.backbone}_{made.data}"
    return config


def apply(config: DictConfig, request: Request) -> None:
    """Set the keys that were asked for, resolve interpolations and check every value, in place.

    Raises ConfigError for a key that does not exist, naming the nearest, and for a value that cannot be.
    """
    existing = list(_keys(OmegaConf.to_container(config)))
    for key, value in request.values.items():
        if key not in existing:
            raise ConfigError(f"there is no key {key!r} in the configuration.{_key_meant(key, existing)}")
        group, _, rest = key.rpartition(".")
        if group and rest == "name" and value != OmegaConf.select(config, key):
            raise ConfigError(f"{key}={value}: it only says what was chosen; take {group}={value}")
        _set(config, key, value)
    for key, value in request.added.items():
        if not key.startswith(ADDABLE):
            if key in existing:
                raise ConfigError(f"+{key}: the key {key!r} is there already, write {key}=... without +")
            hint = _key_meant(key, existing)
            raise ConfigError(f"+{key}: there is no such key, and only keys of the Trainer can be added.{hint}")
        with open_dict(config):
            _set(config, key, value)
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the ${{...}} of {_unresolved(config)} cannot be resolved: {_first_line(error)}") from error
    for key in sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{key}=???: stands for a value that is still missing; give one")
    check_values(config)


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
    if str(value) not in options:
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

"""What an adapter file says of its method and settings becomes the configuration, or is contradicted in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mwa_lightning.adapters.files.foreign import is_released
from mwa_lightning.adapters.files.metadata import FREE_SETTINGS, Header, locate_adapter, read_header, tensor_names
from mwa_lightning.cli.config.composing import Request, compose_groups
from mwa_lightning.cli.config.groups import group_options
from mwa_lightning.cli.config.schema import rule_of
from mwa_lightning.cli.config.trusted import TARGET, targets_of
from mwa_lightning.errors import CheckpointError, ConfigError

CHECKPOINT = "adapter.checkpoint"


def header_of(path: Path) -> Header | None:
    """The head of an adapter file of ours; None for a file of torch, which is looked into later, and where none is.

    Raises CheckpointError for a safetensors file that is no adapter, or says what cannot be.
    """
    if not path.is_file():
        return None
    names = tensor_names(path)
    return None if names is None or is_released(names) else read_header(path)


def method_of(header: Header) -> str:
    """The choice of the group `adapter` whose class a file names. Raises CheckpointError if there is none."""
    choice = targets_of("adapter").get(header.target or "")
    if choice is None:
        options = ", ".join(group_options("adapter"))
        raise CheckpointError(
            f"{header.path}: its method {header.target} is none of {options}; --config-dir=DIR adds "
            "one whose config names it"
        )
    return choice


def settings_of(header: Header, node: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the method, by the keys of its config, `node`. Raises CheckpointError for what cannot be."""
    return _checked(header, header.settings, node, part="adapter")


def backbone_settings_of(header: Header, node: Mapping[str, Any]) -> dict[str, Any]:
    """What the backbone was like that it was trained on, as far as its config, `node`, can say it."""
    of_it = {key: value for key, value in header.backbone_settings.items() if key in node}
    return _checked(header, of_it, node, part="backbone")


def adopt(
    config: DictConfig, request: Request, recompose: Callable[[dict[str, str | None]], DictConfig], *, evaluation: bool
) -> DictConfig:
    """The configuration with what the file of `adapter.checkpoint` says; keys that were typed are held against it.

    A folder becomes the file in it. Where no method was asked for, it is the file's, composed anew. An evaluation also
    takes over what the backbone was like, but for keys that were typed; of those that differ `attach` warns.

    Raises CheckpointError or ConfigError.
    """
    given = request.values.get(CHECKPOINT, config.adapter.get("checkpoint"))
    if given is None:
        return config
    path = locate_adapter(Path(str(given)).expanduser())
    if CHECKPOINT in request.values:
        request.values[CHECKPOINT] = str(path)
    else:
        config.adapter.checkpoint = str(path)
    header = header_of(path)
    if header is None:
        return config
    method = method_of(header)
    if config.adapter.get(TARGET) != header.target:
        chosen = request.choices.get("adapter") or request.choices.get("experiment")
        if chosen is not None or request.values.get("run") is not None:
            own = targets_of("adapter").get(str(config.adapter.get(TARGET)), "another")
            raise ConfigError(
                f"{CHECKPOINT}={path}: is of adapter={method}, and adapter={own} is set: give adapter={method}, or "
                "another file"
            )
        config = recompose({"adapter": method})
    for key, value in settings_of(header, config.adapter).items():
        name = f"adapter.{key}"
        if name in request.values:
            if request.values[name] != value and key not in FREE_SETTINGS:
                raise ConfigError(f"{name}={request.values[name]}: {path} was trained with {value}; leave the key out")
        elif evaluation or key not in FREE_SETTINGS:
            config.adapter[key] = value
    if evaluation:
        for key, value in backbone_settings_of(header, config.backbone).items():
            config.backbone[key] = value  # what was typed is set after this
    return config


def recomposing(config_name: str, request: Request) -> Callable[[dict[str, str | None]], DictConfig]:
    """`compose_groups` with the choices of a command line, and others besides."""
    return lambda further: compose_groups(config_name, request.choices | further, request.defaults)


def _checked(header: Header, said: Mapping[str, Any], node: Mapping[str, Any], *, part: str) -> dict[str, Any]:
    """What a file says of keys of a config, each by the rule of the key."""
    found = {}
    for key, value in said.items():
        if key not in node or key in (TARGET, "checkpoint", "tokenizer"):
            raise CheckpointError(f"{header.path}: says {part}.{key}={value}, and there is no such key")
        rule = rule_of({part: node}, f"{part}.{key}")
        try:
            if rule is not None:
                rule(OmegaConf.create(value) if isinstance(value, list) else value)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{header.path}: says {part}.{key}={value}: {error}; is it damaged?") from error
        found[key] = value
    return found

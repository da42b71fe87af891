"""`mwa-prepare`: make a data set, or inspect one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mwa_lightning.cli.command import Command, run
from mwa_lightning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from omegaconf import DictConfig

_USAGE = """
mwa-prepare data=scenes|scenes_nlvr2 [key=value ...]
mwa-prepare data=... data.root=DIR check=true
Make a built-in data set, or look at every file of a data set and report all its problems at once.

  mwa-prepare data=scenes data.root=DIR
  mwa-prepare data=coco data.root=DIR check=true
"""
_MAIN_KEYS = ("check", "debug", "data.root", "data.domain", "data.num_workers")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    command = Command(
        name="mwa-prepare",
        config_name="prepare",
        compose=_compose,
        execute=_execute,
        usage=_USAGE,
        main_keys=_MAIN_KEYS,
    )
    return run(command, argv)


def _compose(arguments: list[str]) -> DictConfig:
    from mwa_lightning.cli.composing import apply, compose_groups, read_request

    request = read_request(arguments, config_name="prepare")
    config = compose_groups("prepare", request.choices)
    apply(config, request)
    return config


def _execute(config: DictConfig) -> None:
    from mwa_lightning.cli.consistency import BUILT_IN, check_data

    check_data(config)
    layout = config.data.layout
    if layout in BUILT_IN:
        _make_scenes(config)
    elif not config.check:
        raise ConfigError(
            f"data={layout} is not made here, only data={' and data='.join(BUILT_IN)} are; check=true inspects what "
            "is there"
        )
    if config.check:
        _inspect(config)


def _make_scenes(config: DictConfig) -> None:
    """Make a built-in data set unless it is there; `data.root` is set to where it is."""
    from mwa_lightning.data.sources import prepare_scenes, scenes_root

    layout, domain = config.data.layout, config.data.domain
    root = Path(config.data.root) if config.data.root is not None else scenes_root(domain=domain, layout=layout)
    prepare_scenes(root, domain=domain, layout=layout)
    config.data.root = str(root)
    print(f"data={layout}, {domain} domain: {root}")


def _inspect(config: DictConfig) -> None:
    """Print the report on a data set; DataError where a run would fail."""
    from omegaconf import OmegaConf

    from mwa_lightning.data.inspection import format_report, inspect

    data = OmegaConf.to_container(config.data)
    assert isinstance(data, dict)
    report = inspect({str(key): value for key, value in data.items()}, workers=config.data.num_workers)
    print(format_report(report))
    if report.fatal:
        raise DataError(f"data={config.data.layout}: not fit to be used, see the report above")

"""`mwa-prepare`: make a data set, inspect one, or turn one into shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwa_lightning.cli.command import Command, run
from mwa_lightning.errors import ConfigError, DataError, Stopped, counted
from mwa_lightning.report.terminal import deliver, say

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mwa_lightning.data.files.long_work import Follow
    from mwa_lightning.system.signals import Breaking

_USAGE = """
mwa-prepare data=scenes|scenes_nlvr2 [key=value ...]
mwa-prepare data=... data.root=DIR check=true
mwa-prepare data=... data.root=DIR shards=DIR
Make a built-in data set; look at every file of a data set and report all its problems at once; turn a data
set into shards, a few large files for the storage of a cluster.

  mwa-prepare data=scenes data.root=DIR
  mwa-prepare data=coco data.root=DIR check=true
  mwa-prepare data=coco data.root=DIR shards=SHARDS          mwa-train data=coco data.shards=SHARDS reads them
  mwa-prepare data=coco data.shards=SHARDS check=true
"""
_MAIN_KEYS = (
    "check",
    "shards",
    "shard_size_mb",
    "shards_outside",
    "debug",
    "data.root",
    "data.shards",
    "data.domain",
    "data.num_workers",
)


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
    from mwa_lightning.cli.config.composing import compose_command
    from mwa_lightning.cli.config.groups import groups_of

    of_training = groups_of("train").keys() - groups_of("prepare").keys()
    for argument in arguments:
        if argument.lstrip("+").partition("=")[0].partition(".")[0] in of_training:
            raise ConfigError(f"{argument}: mwa-prepare looks at data alone; leave out what is of mwa-train")
    return compose_command("prepare", arguments)


def _execute(config: DictConfig) -> None:
    from mwa_lightning.system.signals import Breaking, listening

    try:
        with listening("USR1", signals := Breaking()):
            _prepare(config, signals)
    except Stopped as signal:
        raise Stopped(f"stopped by {signal}; start the same command again, it begins anew") from signal


def _prepare(config: DictConfig, signals: Breaking) -> None:
    from mwa_lightning.cli.config.consistency import BUILT_IN, check_data, check_task

    check_data(config)
    if "task" in config:
        check_task(config)
    layout = config.data.layout
    if layout in BUILT_IN and config.data.shards is None:
        _make_scenes(config)
    elif not config.check and config.shards is None:
        raise ConfigError(
            f"data={layout} is not made here, only data={' and data='.join(BUILT_IN)} are; check=true inspects what "
            "is there, shards=DIR turns it into shards"
        )
    if config.check:
        _inspect(config, signals)
    if config.shards is not None:
        _write_shards(config, signals)


def _follow(signals: Breaking) -> Follow:
    """Shows how far a work is, and ends it between two of its parts if a signal was noted."""
    from mwa_lightning.report.progress import progress

    @contextmanager
    def follow(what: str, total: int) -> Iterator[Callable[[], None]]:
        with progress(what, total) as advance:

            def advance_unless_told() -> None:
                signals.check()
                advance()

            yield advance_unless_told

    return follow


def _make_scenes(config: DictConfig) -> None:
    """Make a built-in data set unless it is there; `data.root` is set to where it is."""
    from mwa_lightning.data.built_in import prepare_scenes, scenes_root

    layout, domain = config.data.layout, config.data.domain
    root = Path(config.data.root) if config.data.root is not None else scenes_root(domain=domain, layout=layout)
    prepare_scenes(root, domain=domain, layout=layout)
    config.data.root = str(root)
    say(f"data={layout}, {domain} domain: {root}")


def _options(config: DictConfig) -> dict[str, Any]:
    """What the configuration says of the data set."""
    from omegaconf import OmegaConf

    data = OmegaConf.to_container(config.data)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def _inspect(config: DictConfig, signals: Breaking) -> None:
    """Print the report on a data set; DataError where a run would fail."""
    from mwa_lightning.data.inspection import format_report, inspect
    from mwa_lightning.training.distributed.cpus import AUTO, cpus_here

    workers = config.data.num_workers
    if workers == AUTO:
        free = cpus_here().free
        workers = free if free > 1 else 0
    with signals.noting():
        report = inspect(_options(config), workers=workers, follow=_follow(signals))
    deliver(format_report(report))
    if report.fatal:
        raise DataError(f"data={config.data.layout}: not fit to be used, see the report above")


def _write_shards(config: DictConfig, signals: Breaking) -> None:
    """Turn the data set into shards, and print what these are."""
    from mwa_lightning.data.shard_writing import write_shards
    from mwa_lightning.data.sources import source_of

    data = _options(config)
    source = source_of(data)
    problems = source.problems(
        skip_rows=data.get("skip_bad_rows", 0), skip_in_evaluation=data.get("skip_bad_rows_in_eval", False)
    )
    shard_bytes = int(config.shard_size_mb * 1_000_000)
    with signals.noting():
        written = write_shards(
            source,
            Path(config.shards),
            shard_bytes=shard_bytes,
            outside=config.shards_outside,
            problems=problems,
            follow=_follow(signals),
        )
    twins = written.paths - written.images
    same = f" ({twins:,} the same as others)" if twins else ""
    say(
        f"data={config.data.layout}: {counted(written.paths, 'image')}{same} "
        f"in {counted(written.shards, 'shard')}, {written.bytes:,} bytes: {config.shards}"
        + ("" if written.new else " (there already)")
    )

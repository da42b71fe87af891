"""`mwa-compare`: one table over many runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mwa_lightning.cli.command import Command, run
from mwa_lightning.errors import ConfigError, StorageError
from mwa_lightning.report.terminal import deliver

if TYPE_CHECKING:
    from omegaconf import DictConfig

_USAGE = """
mwa-compare FOLDER... [key=value ...]
One table over the runs in folders: in what their settings differ, and what came out.

  mwa-compare logs/retrieval/scenes_mwa/2026-01-31_12-00-00_multirun
  mwa-compare FOLDER FOLDER figures=[val/mean_recall,test/i2t_r1] sort=test/i2t_r1
  mwa-compare FOLDER format=csv output=table.csv
"""
_MAIN_KEYS = ("figures", "sort", "format", "output", "debug")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    command = Command(
        name="mwa-compare",
        config_name="compare",
        compose=_compose,
        execute=_execute,
        usage=_USAGE,
        main_keys=_MAIN_KEYS,
    )
    return run(command, argv)


def _compose(arguments: list[str]) -> DictConfig:
    from omegaconf import open_dict

    from mwa_lightning.cli.config.composing import compose_command

    folders = [word for word in arguments if "=" not in word or Path(word).is_dir()]
    config = compose_command("compare", [word for word in arguments if word not in folders])
    with open_dict(config):
        config.folders = [os.path.abspath(word) for word in folders]  # noqa: PTH100 (`.` and `..` have no names)
    return config


def _execute(config: DictConfig) -> None:
    from mwa_lightning.sweeps.comparison import as_csv, as_markdown, read_runs, table

    if not config.folders:
        raise ConfigError("give one or more folders, of sweeps or with runs in them")
    runs = read_runs([Path(folder) for folder in config.folders])
    rows = table(runs, figures=config.figures, sort=config.sort, exact=config.format == "csv")
    text = as_csv(rows) if config.format == "csv" else as_markdown(rows)
    if config.output is None:
        deliver(text, end="")
        return
    output = Path(config.output)
    if not output.parent.is_dir():
        raise ConfigError(f"output={output}: there is no folder {output.parent}")
    try:
        _write(output, text.encode(errors="backslashreplace"))
    except (OSError, StorageError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or cause
        raise ConfigError(f"output={output}: cannot be written ({reason}); give another file") from error


def _write(path: Path, content: bytes) -> None:
    """Write a whole new file; an empty one, a device or a pipe is written to as it is.

    Raises ConfigError if there is a file: whether it may go is not for us to say.
    """
    from mwa_lightning.training.runs.run_directory import write_atomically

    if path.is_file() and path.stat().st_size:
        raise ConfigError(f"output={path}: is there already; remove it, or give another file")
    if path.exists():
        with path.open("wb") as file:
            file.write(content)
    else:
        write_atomically(path.resolve(), content)


if __name__ == "__main__":
    sys.exit(main())

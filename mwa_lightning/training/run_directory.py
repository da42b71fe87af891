"""The run directory: everything that one run leaves, with the same names every time."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import mwa_lightning
from mwa_lightning.errors import ConfigError

VERSION = "mwa_lightning_version"

# What two configurations of one run may differ in: nothing of it changes the result.
FREE_KEYS = frozenset(
    {
        "run_dir",
        "debug",
        "callbacks.progress_bar",
        "data.num_workers",
        "data.root",
        "training.checkpoint_every_n_steps",
        "training.requeue",
        "training.requeue_signal",
        VERSION,
    }
)


class RunDirectory:
    """Names and writes the files of one run; nothing is made before `create`.

    Of several processes only the first writes: with `writes` off, writing does nothing.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.config = path / "config.yaml"
        self.adapter = path / "adapter.safetensors"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.json"
        self.metrics_table = path / "metrics.csv"
        self.log = path / "train.log"
        self.predictions = path / "predictions.safetensors"
        self.coordinator = path / "coordinator.safetensors"
        self.coordinator_picture = path / "coordinator.png"

    def create(self, *, checkpoints: bool = True) -> None:
        """Make the directory. Raises ConfigError if it cannot be made."""
        if not self.writes:
            return
        try:
            (self.checkpoints if checkpoints else self.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run_dir={self.path}: cannot be made ({error.strerror}); choose another") from error

    def check(self, config: DictConfig) -> bool:
        """Whether the directory holds an earlier start of this very run.

        Raises ConfigError if it holds another run, or files that are not of a run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"run_dir={self.path}: is a file; give a directory")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return False
        if not self.config.is_file():
            raise ConfigError(f"run_dir={self.path}: has files but no config.yaml of a run; choose an empty directory")
        earlier, now = _flat(OmegaConf.load(self.config)), _flat(config)
        changed = [
            key
            for key in sorted(earlier.keys() | now.keys())
            if earlier.get(key) != now.get(key) and key not in FREE_KEYS and not key.startswith("logger.")
        ]
        if changed:
            shown = ", ".join(f"{key}={now.get(key)} (there: {earlier.get(key)})" for key in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ConfigError(f"run_dir={self.path}: holds a run with other settings: {shown}{more}; choose another")
        return True

    def write_config(self, config: DictConfig) -> None:
        """Write the resolved configuration, with the package's version."""
        if not self.writes:
            return
        resolved = OmegaConf.to_container(config, resolve=True)
        assert isinstance(resolved, dict)
        text = OmegaConf.to_yaml({**resolved, VERSION: mwa_lightning.__version__})
        write_atomically(self.config, text.encode())

    def write_metrics(self, figures: Mapping[str, float]) -> None:
        """Write a flat name -> number file, sorted by name."""
        if not self.writes:
            return
        ordered = {name: figures[name] for name in sorted(figures)}
        write_atomically(self.metrics, (json.dumps(ordered, indent=2) + "\n").encode())

    def read_metrics(self) -> dict[str, float]:
        """The figures of an earlier start, empty if there are none."""
        return json.loads(self.metrics.read_text()) if self.metrics.is_file() else {}

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Append what the package logs to `train.log`."""
        if not self.writes:
            yield
            return
        handler = logging.FileHandler(self.log, mode="a", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("mwa_lightning")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()


def choose(config: DictConfig, *, name: str, job: str | None = None, now: datetime | None = None) -> Path:
    """The directory of `run_dir`, or by default `./logs/<task>/<name>/<job>`, without a job `.../<time>`.

    So a job that SLURM starts again goes on in its directory. A time that is taken gets a number: two runs started in
    one second do not meet.
    """
    if config.run_dir is not None:
        return Path(config.run_dir)
    parent = Path("logs") / str(config.task.name) / name
    if job is not None:
        return parent / job
    time = (now or datetime.now()).strftime("%Y-%m-%d_%H-%M-%S")
    path, number = parent / time, 1
    while path.exists():
        number += 1
        path = parent / f"{time}_{number}"
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary file beside `path`, flush it to the disk and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf by its dotted name."""
    node = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    if not isinstance(node, dict):
        return {prefix: node}
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= _flat(value, f"{prefix}.{key!s}" if prefix else str(key))
    return leaves

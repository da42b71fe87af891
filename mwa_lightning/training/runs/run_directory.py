"""The run directory: everything that one run leaves, with the same names every time."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

import mwa_lightning
from mwa_lightning.errors import ConfigError, Interrupted, StorageError, TrainingError, UserError, shorten
from mwa_lightning.made import in_directory, is_made, make_directory, note_made, remove_made
from mwa_lightning.report.terminal import complain
from mwa_lightning.system.code_version import commit
from mwa_lightning.system.plain_files import read_yaml
from mwa_lightning.system.whole_files import whole_file
from mwa_lightning.training.runs.run_lock import RunLock

VERSION, COMMIT = "mwa_lightning_version", "mwa_lightning_commit"
# The figure that is written with the last of the others, when a run is through.
FINISHED = "time/fit_s"

# What two configurations of one run may differ in: nothing of it changes the result.
FREE_KEYS = frozenset(
    {
        "run_dir",
        "resume",  # looked at by `resuming`
        "debug",
        "expect",
        "callbacks.progress_bar",
        "hydra.searchpath",  # where configs were found, not what they said
        "data.num_workers",
        "trainer.threads",  # by auto, a run keeps those that it began with (see `cpus`)
        "chosen.threads",
        "chosen.num_workers",
        "chosen.processes",
        "data.root",
        "data.shards",
        "training.checkpoint_every_n_steps",
        "training.find_lr",  # which trains nothing
        "training.collapsed",
        "training.requeue",
        "training.requeue_signal",
        VERSION,
        COMMIT,
    }
)
# What besides may differ once there is a checkpoint: the global batch stays that of the checkpoint.
PROCESS_KEYS = frozenset({"trainer.devices", "trainer.num_nodes", "trainer.strategy", "data.batch_size"})


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
        self.provenance = path / "provenance.json"
        self.log = path / "train.log"
        self.predictions = path / "predictions.safetensors"
        self.coordinator = path / "coordinator.safetensors"
        self.coordinator_picture = path / "coordinator.png"
        self.rates, self.rates_table = path / "lr_find.png", path / "lr_find.csv"
        self.lock = RunLock(path, within=(self.checkpoints,))
        self._made: list[Path] = []  # the directories that were not there before

    def create(self, *, checkpoints: bool = True) -> None:
        """Make the directory, and take its lock.

        Raises ConfigError if it cannot be made, or if another process is at it.
        """
        if not self.writes:
            return
        try:
            _, self._made = in_directory(self.path, self.lock.take)
            if checkpoints:
                make_directory(self.checkpoints)
        except OSError as error:
            raise ConfigError(
                f"run_dir={self.path}: cannot be made ({error.strerror}); choose another run_dir"
            ) from error

    @contextmanager
    def removed_at(self, *exit_codes: int, unless: str) -> Iterator[None]:
        """For a run that begins: if it ends so, remove what it has made, `unless` there is a file of that pattern.

        What is wrong with a picture shows only when it is used. What tells of a training that must not go on stays, and
        so does all of it where somebody has put or changed something meanwhile.
        """
        try:
            yield
        except (UserError, Interrupted) as error:
            ended_so = error.exit_code in exit_codes and not isinstance(error, TrainingError | StorageError)
            if ended_so and self.lock.held and not any(self.path.glob(unless)):
                self._remove()
            raise

    def _remove(self) -> None:
        """Remove what this start has made in the directory, if that is all, and the directories made for it."""
        with contextlib.suppress(OSError):  # the mistake is what has to be told
            if remove_made(self.path, but=self.lock.path):
                self.lock.release()
                for path in filter(is_made, self._made):
                    path.rmdir()

    def check(self, config: DictConfig) -> bool:
        """Whether the directory holds an earlier start of this very run.

        Raises ConfigError if it holds another run, or files that are not of a run, or if it may not be looked into.
        """
        with looked_into(self.path):
            return self._check(config)

    def _check(self, config: DictConfig) -> bool:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"run_dir={self.path}: is a file; give a directory")
        others = self._holds_other_files()  # before: another process may be about to write the configuration
        if not self.config.is_file() or VERSION not in self.read_config():
            if others:
                raise ConfigError(
                    f"run_dir={self.path}: has files but no config.yaml of a run; choose an empty run_dir"
                )
            return False
        changed = self.other_settings(config)
        if changed:
            on = (
                f", with adapter.checkpoint={self.adapter} to train on from its weights"
                if self.adapter.is_file()
                else ""
            )
            raise ConfigError(
                f"run_dir={self.path}: holds a run with other settings: {changed}; choose another run_dir{on}"
            )
        return True

    def other_settings(self, config: DictConfig) -> str:
        """What of `config` is not as in the run here and would change its result; empty if nothing."""
        earlier, now = _flat(self.read_config()), _flat(config)
        free = FREE_KEYS | PROCESS_KEYS if any(self.checkpoints.glob("*.ckpt")) else FREE_KEYS
        changed = [
            key
            for key in sorted(earlier.keys() | now.keys())
            if earlier.get(key) != now.get(key) and key not in free and not key.startswith("logger.")
        ]
        return shorten((f"{key}={_typed(now.get(key))} (there: {_typed(earlier.get(key))})" for key in changed), 3)

    def _holds_other_files(self) -> bool:
        """Whether there is more than a run killed at its very beginning, or a test before it, would have left."""
        empty = [self.checkpoints] if self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()) else []
        before_it = [*empty, self.rates, self.rates_table]
        return any(path not in before_it for path in self.lock.others())

    def write_config(self, config: DictConfig) -> None:
        """Write the resolved configuration, with the package's version and commit."""
        if not self.writes:
            return
        resolved = OmegaConf.to_container(config, resolve=True)
        assert isinstance(resolved, dict)
        text = OmegaConf.to_yaml({**resolved, VERSION: mwa_lightning.__version__, COMMIT: commit()})
        write_atomically(self.config, text.encode())

    def read_config(self) -> dict[str, Any]:
        """The configuration of an earlier start, as plain data. Raises ConfigError if it is damaged."""
        with _undamaged(self.config):
            config = read_yaml(self.config)
            assert isinstance(config, dict)
        return config

    def write_metrics(self, figures: Mapping[str, float]) -> None:
        """Write a flat name -> number file, sorted by name."""
        if not self.writes:
            return
        ordered = {name: figures[name] for name in sorted(figures)}
        write_atomically(self.metrics, (json.dumps(ordered, indent=2) + "\n").encode())

    def read_metrics(self) -> dict[str, float]:
        """The figures of an earlier start, empty if there are none. Raises ConfigError if they are damaged."""
        with _undamaged(self.metrics):
            figures = json.loads(self.metrics.read_text("utf-8")) if self.metrics.is_file() else {}
            assert isinstance(figures, dict)
        return figures

    @property
    def finished(self) -> bool:
        """Whether the run is through: it has trained and evaluated."""
        return FINISHED in self.read_metrics()

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Append what the package logs to `train.log`."""
        if not self.writes:
            yield
            return
        new = not self.log.exists()
        handler = LogFile(self.log, mode="a", encoding="utf-8")
        if new:
            note_made(self.log, grows=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("mwa_lightning")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            with contextlib.suppress(OSError):  # of a full disk, which has been told
                handler.close()


class LogFile(logging.FileHandler):
    """`train.log`. A disk that does not take it is told once on the terminal; other files end the run then."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is the library's)
        """Say what is wrong, without the traceback that logging would print."""
        if not self._told:
            self._told = True
            complain(f"warning: {self.baseFilename} cannot be written ({sys.exc_info()[1]})")


@contextmanager
def new_directory(parent: Path, *, kind: str | None = None, now: datetime | None = None) -> Iterator[Path]:
    """A directory `<time>[_<kind>]`, which is nobody else's; removed at the end if nothing came into it.

    It is made at once, as others may begin in the same second: a time that is taken gets a number.
    Raises ConfigError if it cannot be made.
    """
    time = (now or datetime.now()).strftime("%Y-%m-%d_%H-%M-%S")
    end = "" if kind is None else f"_{kind}"

    def make() -> Path:
        times = itertools.chain([time], (f"{time}_{number}" for number in itertools.count(2)))
        return next(path for path in (parent / f"{each}{end}" for each in times) if make_directory(path))

    try:
        path, above = in_directory(parent, make)
    except OSError as error:
        raise ConfigError(f"{parent.absolute()}: cannot be made ({error.strerror}); give run_dir=") from error
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # of one that is not empty, which is how it should be
            for directory in (path, *above):
                directory.rmdir()


def result_settings(config: DictConfig) -> dict[str, Any]:
    """Every setting that changes what a run gives, by its dotted name, in order."""
    flat = _flat(config)
    return {key: flat[key] for key in sorted(flat) if key not in FREE_KEYS and not key.startswith("logger.")}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file. Raises StorageError if it cannot be written; an old file stays then."""
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def looked_into(path: Path) -> Iterator[None]:
    """Turns what the disk has against looking into a directory into a ConfigError that names it."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"run_dir={path}: cannot be looked into ({error.strerror}); choose another run_dir"
        ) from error


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Turns what a file of a run directory cannot be read for into a ConfigError that names it."""
    try:
        yield
    except (OSError, ValueError, AssertionError, yaml.YAMLError) as error:
        reason = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else "cannot be read, it is damaged"
        raise ConfigError(f"{path}: {reason}; put a whole one in its place, or choose another run_dir") from error


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf by its dotted name."""
    node = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    if not isinstance(node, dict):
        return {prefix: node}
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= _flat(value, f"{prefix}.{key!s}" if prefix else str(key))
    return leaves

"""The folder of a sweep: `multirun.yaml` with the words of every job, a run directory and a log for each."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Quote, QuotedString

from mwa_lightning.errors import ConfigError
from mwa_lightning.made import in_directory
from mwa_lightning.system.file_locks import LOCK, Held, open_lock, others_in
from mwa_lightning.system.plain_files import read_yaml
from mwa_lightning.system.whole_files import writing
from mwa_lightning.training.runs.run_directory import RunDirectory, looked_into, write_atomically

RECORD = "multirun.yaml"


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its number, the words that its command has besides `run_dir`, and what is noted of it.

    `notes` may hold `slurm`, the id of its SLURM job, `failed`, how its last start ended, and `pruned`, the epoch after
    which a search ended it.
    """

    number: int
    overrides: tuple[str, ...]
    notes: dict[str, Any] = field(default_factory=dict)


class SweepFolder:
    """Names and writes the files of a sweep; nothing is made before `write`.

    `further` are words that every job's command has besides its own, such as where configs are looked for.
    """

    def __init__(self, path: Path, further: Sequence[str] = ()) -> None:
        self.path = path
        self.further = tuple(further)
        self.record = path / RECORD
        self._depth = 0

    def run(self, job: Job) -> RunDirectory:
        """The run directory of a job."""
        return RunDirectory(self.path / str(job.number))

    def log(self, job: Job) -> Path:
        """What a job's process prints."""
        return self.path / f"{job.number}.log"

    def command(self, job: Job) -> list[str]:
        """The words after `mwa-train` that carry out a job."""
        return [*self.further, *job.overrides, f"run_dir={quoted(str(self.run(job).path))}"]

    def read(self) -> list[Job]:
        """The jobs that `multirun.yaml` records, none if there is no such file. Raises ConfigError if it is damaged."""
        with looked_into(self.path):
            known = self.record.is_file()
            # One that was killed at its very beginning leaves its lock, and a record that it had not finished.
            foreign = not known and (self.path.is_file() or others_in(self.path))
        if not known:
            if foreign:
                raise ConfigError(f"run_dir={self.path}: has files but no {RECORD} of a sweep; choose an empty folder")
            return []
        try:
            jobs = read_yaml(self.record)["jobs"]
            return [
                Job(_number(number), _words(entry.pop("overrides")), entry) for number, entry in sorted(jobs.items())
            ]
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            raise ConfigError(f"{self.record} cannot be read as the record of a sweep") from error

    def write(self, jobs: Sequence[Job]) -> None:
        """Write `multirun.yaml`. Raises ConfigError if the folder cannot be made."""
        self._make()
        entries = {job.number: {"overrides": list(job.overrides), **job.notes} for job in jobs}
        write_atomically(self.record, yaml.safe_dump({"jobs": entries}, sort_keys=False, width=110).encode())

    def note(self, number: int, **notes: Any) -> None:
        """Add to what is noted of a job; None takes a note away."""
        with self.locked():
            jobs = {job.number: job for job in self.read()}
            changed = {name: note for name, note in {**jobs[number].notes, **notes}.items() if note is not None}
            if changed != jobs[number].notes:
                jobs[number] = replace(jobs[number], notes=changed)
                self.write(list(jobs.values()))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes that work on this folder out of a read and the write that follows."""
        self._depth += 1
        try:
            if self._depth > 1:
                yield
                return
            self._make()
            with writing(self.path / LOCK):
                file, made = open_lock(self.path / LOCK)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                Held(self.path / LOCK, file, made=made).begin(self.path)
                yield
            finally:
                os.close(file)
        finally:
            self._depth -= 1

    def _make(self) -> None:
        try:
            in_directory(self.path, self.path.stat)
        except OSError as error:
            raise ConfigError(f"run_dir={self.path}: cannot be made ({error.strerror}); choose another") from error


def _number(noted: Any) -> int:
    """The number of a job, which names its run directory. Raises TypeError if it is none."""
    if isinstance(noted, bool) or not isinstance(noted, int) or noted < 0:
        raise TypeError(f"{noted!r} is no number of a job")
    return noted


def _words(noted: Any) -> tuple[str, ...]:
    """The words of a job as they are noted. Raises TypeError if that is no list of words."""
    if not isinstance(noted, list) or not all(isinstance(word, str) for word in noted):
        raise TypeError(f"{noted} is no list of words")
    return tuple(noted)


def quoted(text: str) -> str:
    """A text as a value that Hydra's grammar reads back as it is."""
    return QuotedString(text, Quote.single).with_quotes()

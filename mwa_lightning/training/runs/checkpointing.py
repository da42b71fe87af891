"""Checkpoints of a run: what trains, optimizer, loops and position in the data, whole or not at all.

A checkpoint counts as whole if its SHA-256 is in `sha256.txt` beside it (under whatever name: files are
renamed after that is written). So whenever the run is killed, the last or the previous checkpoint is whole
and known, and one that was truncated is not. `sha256sum -c sha256.txt` checks them by hand.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from mwa_lightning.errors import CheckpointError, shorten
from mwa_lightning.system.whole_files import file_sha256, flush_names, whole_file
from mwa_lightning.training.runs.console import FILE_ONLY
from mwa_lightning.training.runs.run_directory import write_atomically

log = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
SUMS = "sha256.txt"


class CheckpointFiles(CheckpointIO):
    """Writes and reads the checkpoints of one directory; Lightning's plugin for it.

    Writing `last.ckpt` moves the one before to `previous.ckpt`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all. Raises StorageError if it cannot be written."""
        path = Path(path)
        log.info("writing %s of step %s", path.name, checkpoint.get("global_step"), extra=FILE_ONLY)
        with whole_file(path) as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())  # what is not on the disk must not be known as whole
            sums = [pair for pair in _sums(path.parent) if pair[1] != path.name]
            # A last checkpoint that is truncated must not push the whole one before it away.
            rotate = path.name == LAST and path.is_file() and is_whole(path)
            if rotate:
                sums = [pair for pair in sums if pair[1] != PREVIOUS] + [(file_sha256(path), PREVIOUS)]
            self._write_sums([*sums, (file_sha256(Path(file.name)), path.name)])
            if rotate:
                path.replace(path.with_name(PREVIOUS))
                flush_names(path.parent)
        log.info("wrote %s", path.name, extra=FILE_ONLY)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; tensors and plain Python only, so nothing in it can run.

        Raises CheckpointError if it is missing or truncated.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint; give last.ckpt, previous.ckpt or best.ckpt of a run")
        if not is_whole(path):
            raise CheckpointError(
                f"{path}: is truncated or changed (its SHA-256 is not in the {SUMS} beside it); use another checkpoint"
            )
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Nothing: it is for Lightning's own callback, which is off."""

    def keep_as_best(self, path: Path) -> None:
        """Copy a checkpoint to `best.ckpt`, unless that is it. Raises StorageError if it cannot be written."""
        best, digest = self.directory / BEST, file_sha256(path)
        if best.is_file() and file_sha256(best) == digest:
            return
        with whole_file(best) as file, path.open("rb") as source:
            shutil.copyfileobj(source, file)
            self._write_sums([pair for pair in _sums(self.directory) if pair[1] != BEST] + [(digest, BEST)])

    def latest(self) -> Path | None:
        """The newest whole checkpoint, None if there is none at all; a broken one is named in the log.

        Raises CheckpointError if there are checkpoints, and none of them is whole.
        """
        there = [path for name in self._by_age() if (path := self.directory / name).is_file()]
        for number, path in enumerate(there):
            if is_whole(path):
                return path
            if number + 1 < len(there):
                log.warning("%s is truncated or changed; using the checkpoint before it", path)
        if there:
            raise CheckpointError(
                f"{self.directory}: no checkpoint is whole: {', '.join(path.name for path in there)} "
                f"{'is' if len(there) == 1 else 'are'} truncated or changed (not as in {SUMS}); put a whole one back, "
                "or start anew with another run_dir"
            )
        return None

    def _by_age(self) -> tuple[str, ...]:
        """The names, from the newest on: the best may be a copy of the last, or older than both."""
        best = self.directory / BEST
        copy = best.is_file() and (file_sha256(best), LAST) in _sums(self.directory)
        return (LAST, BEST, PREVIOUS) if copy else (LAST, PREVIOUS, BEST)

    def _write_sums(self, sums: list[tuple[str, str]]) -> None:
        text = "".join(f"{digest}  {name}\n" for digest, name in sorted(sums, key=lambda pair: pair[1]))
        write_atomically(self.directory / SUMS, text.encode())


def is_whole(path: Path) -> bool:
    """Whether the file is one that was written to its end, whatever it was called then."""
    return file_sha256(path) in {digest for digest, _ in _sums(path.parent)}


def check_keys(state: Iterable[str], trained: Iterable[str], *, origin: Path) -> None:
    """Compare the tensors of a checkpoint with what trains. Raises CheckpointError naming the differences."""
    have, want = set(state), set(trained)
    if have == want:
        return
    problems = [
        f"{what}: {shorten(sorted(names))}"
        for what, names in (("missing", want - have), ("not expected", have - want))
        if names
    ]
    raise CheckpointError(f"{origin}: does not fit what trains here ({'; '.join(problems)}); choose another run_dir")


def _sums(directory: Path) -> list[tuple[str, str]]:
    """Sums and names, as `sha256sum` writes them."""
    path = directory / SUMS
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return [(line[:64], line[66:]) for line in lines]

"""Disks that fill up: a real one of 4 MB where we may mount one, and everywhere a limit on the size of a file."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mwa_lightning.errors import StorageError
from mwa_lightning.training.checkpointing import LAST, is_whole
from mwa_lightning.training.loggers import TableLogger

Train = Callable[..., int]


def fill(file: Path) -> None:
    """Write until nothing more goes onto the disk."""
    with file.open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            return


@pytest.mark.parametrize("moment", ["writing last.ckpt of step 6", "epoch 2: training", "epoch 3: validated"])
def test_full_disk__one_line_and_nothing_lost(
    moment: str,
    small_disk: Path,
    whole: Path,
    train: Train,
    happening: Callable[..., Any],
    left_by: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, ballast = small_disk / "run", small_disk / "ballast"
    with happening(moment, lambda: fill(ballast)):
        assert train(f"run_dir={run}") == 2
    *warnings, line = capsys.readouterr().err.splitlines()
    # Which file it is depends on what room the last pages of the others have.
    files = (
        ["checkpoints/last.ckpt"] if "step 6" in moment else ["checkpoints/last.ckpt", "metrics.csv", "adapter.safe"]
    )
    assert line.startswith(tuple(f"mwa-train: error: {run / file}" for file in files))
    assert "cannot be written (No space left on device). What was saved before is whole" in line
    assert warnings in ([], [f"warning: {run / 'train.log'} cannot be written ([Errno 28] No space left on device)"])
    assert is_whole(run / "checkpoints" / LAST)
    rows = (run / "metrics.csv").read_text()
    assert rows.endswith("\n")
    assert {row.count(",") for row in rows.splitlines()} == {3}
    assert not [path for path in run.rglob(".*") if path.is_file()]

    ballast.unlink()
    assert train(f"run_dir={run}") == 0
    assert left_by(run) == left_by(whole)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: a limit set in earnest, which stands for a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_file_limit__rows_of_the_table_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = TableLogger(path=path)
    table.log_metrics({"a": 0.1}, step=0)
    content = path.read_text()
    with file_limit(len(content) + 9), pytest.raises(StorageError, match=r"metrics\.csv cannot be written"):
        table.log_metrics({"a": 0.1, "b": 0.2}, step=1)
    assert path.read_text() == content


def test_file_limit__a_checkpoint_that_is_not_taken(
    whole: Path,
    tmp_path: Path,
    train: Train,
    happening: Callable[..., Any],
    left_by: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The limit is half a checkpoint."""
    run = tmp_path / "run"
    limit = file_limit((whole / "checkpoints" / LAST).stat().st_size // 2)
    with ExitStack() as stack, happening("writing last.ckpt of step 4", lambda: stack.enter_context(limit)):
        assert train(f"run_dir={run}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run / 'checkpoints' / LAST} cannot be written (File too large)." in line
    assert is_whole(run / "checkpoints" / LAST)
    assert train(f"run_dir={run}") == 0
    assert left_by(run) == left_by(whole)

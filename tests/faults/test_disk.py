"""Disks that fill up: a real one of 4 MB where we may mount one, and everywhere a limit on the size of a file."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mwa_lightning.training.checkpointing import LAST, is_whole

Train = Callable[..., int]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(file: Path) -> None:
    """Write until nothing more goes onto the disk."""
    with file.open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            return


@pytest.mark.parametrize(
    ("moment", "file"),
    [
        ("writing last.ckpt of step 6", "last.ckpt"),  # while a checkpoint is written
        ("epoch 2: training", "metrics.csv"),  # the next that is written is a row
        ("epoch 3: validated", "adapter.safetensors|metrics.csv"),
    ],
)
def test_full_disk__one_line_and_nothing_lost(
    moment: str,
    file: str,
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
    assert any(f"{name} cannot be written (No space left on device)." in line for name in file.split("|"))
    assert line.startswith(f"mwa-train: error: {run}/")
    assert warnings in ([], [f"warning: {run / 'train.log'} cannot be written ([Errno 28] No space left on device)"])
    assert is_whole(run / "checkpoints" / LAST)
    rows = (run / "metrics.csv").read_text()
    assert rows.endswith("\n")
    assert {row.count(",") for row in rows.splitlines()} == {3}
    assert not [path for path in run.rglob(".*") if path.is_file()]

    ballast.unlink()
    assert train(f"run_dir={run}") == 0
    assert left_by(run) == left_by(whole)


def test_file_limit__a_checkpoint_that_is_not_taken(
    whole: Path,
    tmp_path: Path,
    train: Train,
    happening: Callable[..., Any],
    left_by: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The limit, half a checkpoint, is set in earnest, and stands for a quota."""
    run = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = (whole / "checkpoints" / LAST).stat().st_size // 2

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    try:
        with happening("writing last.ckpt of step 4", limit_files):
            assert train(f"run_dir={run}") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run / 'checkpoints' / LAST} cannot be written (File too large)." in line
    assert is_whole(run / "checkpoints" / LAST)
    assert train(f"run_dir={run}") == 0
    assert left_by(run) == left_by(whole)

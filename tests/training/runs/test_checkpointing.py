"""Checkpoints are whole or not there, at whatever moment the run is killed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mwa_lightning.errors import CheckpointError
from mwa_lightning.training.runs.checkpointing import BEST, LAST, PREVIOUS, SUMS, CheckpointFiles, check_keys


def write(files: CheckpointFiles, step: int) -> None:
    files.save_checkpoint({"step": step, "w": torch.full((3,), float(step))}, files.directory / LAST)


def step_of(files: CheckpointFiles) -> int | None:
    path = files.latest()
    return None if path is None else files.load_checkpoint(path)["step"]


def test_save__rotates_and_sums_are_right(tmp_path: Path) -> None:
    files = CheckpointFiles(tmp_path)
    assert files.latest() is None
    for step in range(3):
        write(files, step)
        if step == 1:
            files.keep_as_best(tmp_path / LAST)
    steps = {name: files.load_checkpoint(tmp_path / name)["step"] for name in (LAST, PREVIOUS, BEST)}
    assert steps == {LAST: 2, PREVIOUS: 1, BEST: 1}
    lines = [line.split("  ") for line in (tmp_path / SUMS).read_text().splitlines()]
    assert {name: digest for digest, name in lines} == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in (LAST, PREVIOUS, BEST)
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([LAST, PREVIOUS, BEST, SUMS])


def test_latest__cut_short_falls_back_to_previous(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = CheckpointFiles(tmp_path)
    write(files, 0)
    write(files, 1)
    content = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(content[:-7])
    assert step_of(files) == 0
    assert "last.ckpt is truncated" in caplog.text
    with pytest.raises(CheckpointError, match=r"truncated"):
        files.load_checkpoint(tmp_path / LAST)
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole: last\.ckpt, previous\.ckpt are truncated"):
        files.latest()


@pytest.mark.parametrize(("best", "newest"), [(1, 1), (2, 2), (3, 3)])
def test_latest__cut_short_falls_back_to_the_newest_that_is_whole(tmp_path: Path, best: int, newest: int) -> None:
    """The best is the first of three, the one before the last, or a copy of the last."""
    files = CheckpointFiles(tmp_path)
    for step in (1, 2, 3):
        write(files, step)
        if step == best:
            files.keep_as_best(tmp_path / LAST)
    (tmp_path / LAST).write_bytes(b"cut")
    assert step_of(files) == max(newest, 2)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, and no clean-up of ours may be needed after it."""


@pytest.mark.parametrize("moment", range(4))
def test_save__killed_at_each_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Every step of a save that changes a name: the sums, last to previous, the new one to last."""
    files = CheckpointFiles(tmp_path)
    write(files, 0)
    write(files, 1)
    calls = 0
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls > moment:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        if moment < 3:
            with pytest.raises(Killed):
                write(files, 2)
        else:
            write(files, 2)
    assert step_of(files) == (2 if moment == 3 else 1)
    write(files, 3)
    assert step_of(files) == 3
    assert files.load_checkpoint(tmp_path / PREVIOUS)["step"] in (1, 2)


def test_load__runs_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch trapped",)

    files = CheckpointFiles(tmp_path)
    files.save_checkpoint({"trap": Trap()}, tmp_path / LAST)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        files.load_checkpoint(tmp_path / LAST)


def test_load__missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        CheckpointFiles(tmp_path).load_checkpoint(tmp_path / LAST)


def test_check_keys__names_both_differences(tmp_path: Path) -> None:
    check_keys(["a", "b"], ["b", "a"], origin=tmp_path)
    with pytest.raises(CheckpointError, match="missing: c; not expected: a") as caught:
        check_keys(["a", "b"], ["b", "c"], origin=tmp_path)
    assert "\n" not in str(caught.value)

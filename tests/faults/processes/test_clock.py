"""A clock that is set back, while a run goes on or between two starts of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mwa_lightning.errors import Stopped
from mwa_lightning.training.runs.run_directory import new_directory
from tests.faults.conftest import Disturbed

DAY = 24 * 3600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock of this process by so many seconds."""
    real = time.time

    def put(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return put


def stop() -> None:
    raise Stopped("asked to")


@pytest.mark.slow
def test_train__set_back_while_it_runs_and_before_it_goes_on(
    disturbed: Disturbed,
    happening: Callable[..., Any],
    clock: Callable[[float], None],
    data_root: Path,
) -> None:
    """The same bytes and metrics; TensorBoard has each metric once, and those of the last start."""
    words = ["logger=tensorboard"]
    with happening("writing last.ckpt of step 2", lambda: clock(-DAY)), happening("epoch 2: training", stop):
        disturbed.fails(*words, code=75)
    clock(-2 * DAY)
    for path in (disturbed.run, *disturbed.run.rglob("*"), *data_root.glob("*")):
        os.utime(path, (path.stat().st_atime, time.time() + DAY), follow_symlinks=False)  # all of tomorrow
    disturbed.ends(*words)
    events = EventAccumulator(str(disturbed.run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(9))
    assert {"val/mean_recall", "test/mean_recall"} <= set(events.Tags()["scalars"])


def test_new_directory__a_time_that_was_there_already(tmp_path: Path) -> None:
    """Set back by an hour, in the night in which summer time ends, the same times come again."""
    from datetime import datetime

    again = datetime(2026, 10, 25, 2, 30)
    for number in range(3):
        with new_directory(tmp_path, now=again) as path:
            (path / str(number)).touch()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["2026-10-25_02-30-00", "2026-10-25_02-30-00_2", "2026-10-25_02-30-00_3"]
    assert [len(list(path.iterdir())) for path in tmp_path.iterdir()] == [1, 1, 1]

"""What a requeued job goes back to, whatever becomes of the clock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mwa_lightning.training.runs.checkpointing import BEST, LAST, PREVIOUS
from mwa_lightning.training.runs.resuming import _note_going_back, _saved_since

HOUR = 3600 * 10**9


def at(path: Path, time: int) -> None:
    path.touch()
    os.utime(path, ns=(time, time))


@pytest.mark.parametrize("name", [BEST, PREVIOUS])
@pytest.mark.parametrize("later", [HOUR, 1, -1, -24 * HOUR])
def test_saved_since__also_where_the_clock_was_set_back(name: str, later: int, tmp_path: Path) -> None:
    now = 10**18 + 1
    at(tmp_path / name, now - 24 * HOUR)
    at(tmp_path / LAST, now)
    _note_going_back(tmp_path / name)
    assert not _saved_since(tmp_path / name)
    at(tmp_path / LAST, now + later)
    assert _saved_since(tmp_path / name)


def test_saved_since__where_there_was_no_last_one(tmp_path: Path) -> None:
    (tmp_path / BEST).touch()
    _note_going_back(tmp_path / BEST)
    assert not _saved_since(tmp_path / BEST)
    at(tmp_path / LAST, 1)
    assert _saved_since(tmp_path / BEST)

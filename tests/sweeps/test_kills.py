"""SIGKILL to a search at many moments: started again it ends with the study of one that nothing happened to."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from sqlalchemy import event

from mwa_lightning.sweeps.folder import SweepFolder
from mwa_lightning.sweeps.local_launcher import LocalLauncher
from mwa_lightning.sweeps.search import Search
from mwa_lightning.sweeps.study import SharedStudy
from tests.sweeps.test_search import SEARCH, settings

Make = Callable[..., LocalLauncher]
SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-3, 10, log=True),
    "kind": CategoricalDistribution(["a", "b", "c"]),
    "size": FloatDistribution(0, 1),
}


def start(path: Path, make: Make, *, commit: int | None = None, seconds: float | None = None) -> int:
    """Search in a process of its own, which dies before a commit of the database or after a time; its exit code."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        os.dup2(os.open(path / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        warnings.simplefilter("error")  # what is told twice
        if seconds is not None:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        folder = SweepFolder(path / "search")
        with folder.locked():
            if not folder.record.is_file():
                folder.write([])
            shared = SharedStudy(folder, SPACE, settings(trials=7, startup_trials=3, pruner="median"), max_epochs=2)
            if commit is not None:
                left = iter(range(commit - 1))

                def die(connection: Any) -> None:
                    if next(left, None) is None:
                        os.kill(os.getpid(), signal.SIGKILL)

                event.listen(shared._storage.engine, "commit", die)
            shared.agree(SEARCH)
        Search(shared, make(folder), ("epochs=2",), objective="val/score", max_epochs=2).carry_out()
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def outcome(path: Path) -> list[tuple[Any, ...]]:
    """What a study has come to, trial by trial, and what the folder records of it."""
    folder = SweepFolder(path / "search")
    shared = SharedStudy(folder, SPACE, settings(), max_epochs=2)
    shared.close()
    found: list[tuple[Any, ...]] = [
        (trial.number, trial.state, trial.params, trial.value, trial.intermediate_values)
        for trial in shared.study.get_trials()
    ]
    return [*found, *((job.number, job.overrides, job.notes) for job in folder.read())]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments__same_study(launcher: Make, tmp_path: Path) -> None:
    """Half of the kills come before a commit of the database: when a trial is made, drawn, begun, told of or ended."""
    whole = tmp_path / "whole"
    whole.mkdir()
    begin = time.monotonic()
    assert start(whole, launcher) == 0, (whole / "output.txt").read_text()
    seconds = time.monotonic() - begin
    draw = random.Random(11)
    kills, number = 0, 0
    while kills < 40:
        path = tmp_path / str(number)
        path.mkdir(exist_ok=True)
        how = {"commit": draw.randrange(1, 60)} if draw.random() < 0.5 else {"seconds": draw.uniform(0, seconds)}
        code = start(path, launcher, **how)
        output = (path / "output.txt").read_text()
        assert code in (0, -signal.SIGKILL), output
        kills += code != 0
        assert "Traceback" not in output
        if code == 0:
            assert outcome(path) == outcome(whole), output
            number += 1
    print(kills, "kills in", number + 1, "searches")
    path = tmp_path / str(number)
    path.mkdir(exist_ok=True)
    assert start(path, launcher) == 0
    assert outcome(path) == outcome(whole)

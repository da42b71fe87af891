"""Jobs that reach the limit of `--time`, which SLURM counts in minutes: with a notice, and without one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.leftovers import left_by
from tests.slurm.cluster import Cluster
from tests.slurm.runs import output_of, run_of, submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# SLURM looks at the limits each half minute, so it may let a job of one minute run for one and a half.
LONG = "trainer.max_epochs=70"
ONE = ("--ntasks-per-node=1", "--time=1")


def test_train__time_limit(jobs: Cluster, folder: Path) -> None:
    """With a notice a job goes on by itself, without one by hand: both leave what an undisturbed one would."""
    noticed = submit(jobs, folder, LONG, place=(*ONE, "--signal=USR1@5"))
    # A signal that does nothing, in the place of that of the script.
    surprised = submit(jobs, folder, LONG, place=(*ONE, "--signal=URG@5"))
    whole = submit(jobs, folder, LONG, place=(*ONE, "--time=30"))

    state = jobs.wait(surprised, seconds=600)
    if state == "COMPLETED":
        pytest.skip("this machine is through before a minute is over")
    assert state == "TIMEOUT"
    said, run = output_of(folder, surprised), run_of(folder, surprised)
    saved = "(after step [0-9]+, which is saved|during the evaluation, which is to be made again)"
    assert re.search(rf"stopped by SIGTERM {saved}; SLURM is ending job {surprised} itself", said), said
    again = submit(jobs, folder, LONG, f"run_dir={run}", place=(*ONE, "--time=30"))

    assert jobs.wait(noticed, seconds=900) == "COMPLETED", output_of(folder, noticed)
    said = output_of(folder, noticed)
    assert re.search(rf"stopped by SIGUSR1 after step \d+, which is saved; job {noticed} was requeued", said), said
    assert said.count("resuming from") == int(jobs.about(noticed, "Restarts")) > 0

    assert jobs.wait(whole, seconds=900) == "COMPLETED", output_of(folder, whole)
    assert jobs.wait(again, seconds=900) == "COMPLETED", output_of(folder, again)
    assert output_of(folder, again).count("resuming from") == 1
    assert left_by(run_of(folder, noticed)) == left_by(run_of(folder, whole))
    assert left_by(run) == left_by(run_of(folder, whole))

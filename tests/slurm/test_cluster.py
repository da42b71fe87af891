"""The cluster of the tests is a real one: steps of several tasks, jobs that are requeued."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slow


def test_cluster__two_tasks(cluster: Cluster) -> None:
    shown = cluster.run("srun", "--ntasks=2", "bash", "-c", "echo $SLURM_PROCID of $SLURM_NTASKS")
    assert sorted(shown.splitlines()) == ["0 of 2", "1 of 2"]


def test_cluster__requeue(cluster: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "job.out"
    script = 'echo start $SLURM_RESTART_COUNT; [ -n "$SLURM_RESTART_COUNT" ] || exec sleep 300'
    job = cluster.submit("--ntasks=2", "--open-mode=append", f"--output={output}", f"--wrap={script}")
    cluster.wait(job, "RUNNING")
    cluster.run("scontrol", "requeue", job)
    assert cluster.wait(job) == "COMPLETED"
    assert [line for line in output.read_text().splitlines() if line.startswith("start")] == ["start", "start 1"]

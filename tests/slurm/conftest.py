"""A real SLURM of one node, and of two; `make test-slurm` installs it, so these tests run nowhere else."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mwa_lightning.data.scenes.writing import write_scenes
from tests.slurm.cluster import Cluster, NoCluster, started
from tests.slurm.runs import SCRIPT, output_of, run_of, submit


def start(machines: int | None = None) -> Iterator[Cluster]:
    installed = all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("slurmctld", "munged"))
    if not installed and not os.environ.get("INSTALL_SLURM"):
        pytest.skip("SLURM is not installed here; make test-slurm installs it on Debian, as root")
    try:
        with started(machines=machines) as cluster:
            yield cluster
    except NoCluster as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, for all tests of a session; skips where there can be none."""
    yield from start()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where jobs are submitted; 40 pictures to train on, so an epoch has twelve global batches of 16."""
    folder = tmp_path_factory.mktemp("slurm")
    write_scenes(folder / "scenes", domain="target", seed=3, train=40, val=6, test=9)
    return folder


def with_program(cluster: Cluster, folder: Path) -> Cluster:
    """The cluster with mwa-train on the path of its jobs, as an activated environment has it."""
    program = folder / "bin" / "mwa-train"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom mwa_lightning.cli.train import main\nsys.exit(main())\n")
    program.chmod(0o755)
    environment = cluster.environment | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(SCRIPT.parents[2]),
        "HOME": str(folder),
    }
    return replace(cluster, environment=environment)


@pytest.fixture(scope="session")
def jobs(cluster: Cluster, folder: Path) -> Cluster:
    """The cluster for training."""
    return with_program(cluster, folder)


@pytest.fixture(scope="session")
def whole(jobs: Cluster, folder: Path) -> Path:
    """The directory of a job of two tasks that nothing happened to."""
    job = submit(jobs, folder)
    assert jobs.wait(job, seconds=600) == "COMPLETED", output_of(folder, job)
    return run_of(folder, job)


@pytest.fixture(scope="module")
def machines(folder: Path) -> Iterator[Cluster]:
    """A cluster of two machines, n1 and n2, for training; skips where there can be none."""
    for cluster in start(2):
        yield with_program(cluster, folder)

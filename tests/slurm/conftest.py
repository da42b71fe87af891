"""A real SLURM of one node; `make test-slurm` installs it, so these tests run nowhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster

SCRIPT = Path(__file__).with_name("cluster.sh")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, for all tests of a session; skips where there can be none."""
    installed = all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("slurmctld", "munged"))
    if not installed and not os.environ.get("INSTALL_SLURM"):
        pytest.skip("SLURM is not installed here; make test-slurm installs it on Debian, as root")
    # Names of sockets are short, so pytest's own folder will not do.
    folder = Path(tempfile.mkdtemp(prefix="slurm_"))
    started = subprocess.run([SCRIPT, "start", folder], text=True, capture_output=True, check=False)
    if started.returncode:
        pytest.skip(f"no SLURM here: {' '.join(started.stderr.split())[-300:]}")
    conf = started.stdout.strip().removeprefix("export SLURM_CONF=")
    try:
        yield Cluster(folder=folder, environment=os.environ | {"SLURM_CONF": conf})
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)
        shutil.rmtree(folder)

"""A running cluster, for tests: its start and end, and commands to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"})
SCRIPT = Path(__file__).with_name("cluster.sh")


class NoCluster(Exception):  # noqa: N818 (not a defect)
    """Why there can be none here."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster; its jobs inherit `environment`, and commands run in its `network`."""

    folder: Path
    environment: dict[str, str]
    network: tuple[str, ...] = ()

    def run(self, *command: str | Path) -> str:
        """What a command on the cluster prints. Raises CalledProcessError if it fails."""
        call = [*self.network, *command]
        done = subprocess.run(call, env=self.environment, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str | Path) -> str:
        """Hand a job to sbatch; returns its id."""
        return self.run("sbatch", "--parsable", *arguments)

    def state(self, job: str) -> str:
        """The state of a job: PENDING, RUNNING, COMPLETED, ..."""
        return self.about(job, "JobState")

    def about(self, job: str, what: str) -> str:
        """What SLURM has to say of a job: JobState, Restarts, Reason, ..."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return shown.partition(f" {what}=")[2].split()[0]

    def wait(self, job: str, *states: str, seconds: float = 300) -> str:
        """Wait until a job is in one of the states, or by default until it has ended; returns its state."""
        wanted, end = frozenset(states) or ENDED, time.monotonic() + seconds
        while (state := self.state(job)) not in wanted:
            assert time.monotonic() < end, f"job {job} is {state} after {seconds:.0f} s, not {sorted(wanted)}"
            time.sleep(0.2)
        return state

    def machine(self, action: str, name: str) -> None:
        """`cut`, `crash` or `boot` one of several machines."""
        subprocess.run([SCRIPT, action, self.folder, name], check=True)


@contextmanager
def started(*, machines: int | None = None) -> Iterator[Cluster]:
    """A cluster of this machine, or of several that are made out of it. Raises NoCluster where there can be none."""
    # Names of sockets are short, so pytest's own folder will not do.
    folder = Path(tempfile.mkdtemp(prefix="slurm_"))
    try:
        call = [SCRIPT, "start", folder, *([] if machines is None else [str(machines)])]
        made = subprocess.run(call, text=True, capture_output=True, check=False)
        if made.returncode:
            raise NoCluster(f"no SLURM here: {' '.join(made.stderr.split())[-300:]}")
        conf = made.stdout.strip().removeprefix("export SLURM_CONF=")
        network: tuple[str, ...] = ()
        if machines is not None:
            network = ("nsenter", f"--net=/proc/{(folder / 'slurmctld.pid').read_text().strip()}/ns/net")
        try:
            yield Cluster(folder=folder, environment=os.environ | {"SLURM_CONF": conf}, network=network)
        finally:
            subprocess.run([SCRIPT, "stop", folder], check=True)
    finally:
        shutil.rmtree(folder)

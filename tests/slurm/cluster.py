"""Commands to a running cluster, for tests."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"})


@dataclass(frozen=True)
class Cluster:
    """A running cluster; its jobs inherit `environment`."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str | Path) -> str:
        """What a command on the cluster prints. Raises CalledProcessError if it fails."""
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str | Path) -> str:
        """Hand a job to sbatch; returns its id."""
        return self.run("sbatch", "--parsable", *arguments)

    def state(self, job: str) -> str:
        """The state of a job: PENDING, RUNNING, COMPLETED, ..."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]

    def wait(self, job: str, *states: str, seconds: float = 300) -> str:
        """Wait until a job is in one of the states, or by default until it has ended; returns its state."""
        wanted, end = frozenset(states) or ENDED, time.monotonic() + seconds
        while (state := self.state(job)) not in wanted:
            assert time.monotonic() < end, f"job {job} is {state} after {seconds:.0f} s, not {sorted(wanted)}"
            time.sleep(0.2)
        return state

"""What SLURM says about this process, and the one thing that we ask of it: to run a job again.

Only environment variables and `scontrol`: this is imported before anything heavy.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

# Ports of the first process, below those that systems give out by themselves.
_FIRST_PORT, _PORTS = 15000, 17000
# How long a command of SLURM may take, in seconds.
_WAIT = 60


@dataclass(frozen=True)
class Step:
    """This process as one of several tasks that srun has started."""

    rank: int
    local_rank: int
    node: int
    tasks: int
    nodes: int
    first_node: str
    port: int


def step() -> Step | None:
    """The step of several tasks that this process is one of; None outside of one.

    A single task is no step of ours: it starts the further processes itself, as outside SLURM. Where the tasks are
    torchruns, one on each machine, the processes are theirs.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks < 2 or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    number = int(os.environ["SLURM_JOB_ID"]) + 101 * int(os.environ["SLURM_STEP_ID"])
    return Step(
        rank=int(os.environ["SLURM_PROCID"]),
        local_rank=int(os.environ["SLURM_LOCALID"]),
        node=int(os.environ["SLURM_NODEID"]),
        tasks=tasks,
        nodes=int(os.environ["SLURM_STEP_NUM_NODES"]),
        first_node=_first(os.environ["SLURM_STEP_NODELIST"]),
        port=_FIRST_PORT + number % _PORTS,
    )


def batch_job() -> str | None:
    """What a batch job is called: its id, or <array>_<index>, the same after a requeueing; None outside of one.

    In an interactive job many runs may be started; they are told apart by their time.
    """
    if os.environ.get("ENVIRONMENT") != "BATCH" or "SLURM_JOB_ID" not in os.environ:
        return None
    return _job()


def restarted() -> bool:
    """Whether this job ran before: SLURM has put it back into the queue since, and its command is the same."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def requeue(otherwise: str) -> str:
    """Put this batch job back into the queue, and say what became of it; if SLURM cannot, what to do `otherwise`.

    Only a job that runs, whose time is nearly over or that has to make room: one that was cancelled is to stay so, and
    one that SLURM itself puts back is already on its way.
    """
    job = _job()
    try:
        state = _ask("squeue", "--noheader", "--format=%T", f"--jobs={job}")
        if state == "COMPLETING":
            return f"SLURM is ending job {job} itself; should it not start again, {otherwise}"
        if state != "RUNNING":
            return f"job {job} is {state.lower() or 'not in the queue'} and was not requeued"
        _ask("scontrol", "requeue", job)
    except _NoAnswer as problem:
        return f"job {job} could not be requeued ({problem}): {otherwise}"
    return f"job {job} was requeued"


def makes_room() -> bool:
    """Whether it is the job that SLURM ends, or is going to: it was cancelled, pre-empted, or its time is over.

    Where SLURM cannot be asked, it was.
    """
    try:
        about = _ask("scontrol", "--oneliner", "show", "job", _job())
    except _NoAnswer:
        return True
    return "JobState=RUNNING" not in about or "PreemptTime=None" not in about


def _job() -> str:
    """What SLURM is asked by: one job of each array has the number of the whole array, which would mean all of them."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


class _NoAnswer(Exception):  # noqa: N818 (not a defect)
    """Why SLURM did not do what it was asked."""


def _ask(command: str, *words: str) -> str:
    """What a command of SLURM prints. Raises _NoAnswer if it failed; what it warns of means nothing."""
    try:
        done = subprocess.run([command, *words], capture_output=True, text=True, timeout=_WAIT, check=False)
    except OSError as error:
        raise _NoAnswer(f"{command} cannot be run here: {str(error.strerror).lower()}") from error
    except subprocess.TimeoutExpired as error:
        raise _NoAnswer(f"{command} did not answer for {_WAIT} seconds") from error
    if done.returncode:
        raise _NoAnswer(" ".join(done.stderr.split()) or f"{command} ended with exit code {done.returncode}")
    return done.stdout.strip()


def _first(nodes: str) -> str:
    """The first of a list such as gpu[03-05,9],login1."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]

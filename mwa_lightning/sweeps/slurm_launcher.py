"""Jobs as SLURM job arrays.

The keys of `launcher=slurm` are those of hydra-submitit-launcher, which also checks them; the array is submitted by
submitit, the library that it wraps. Its launcher class is not used: in each job it composes anew and calls a function
inside submitit's process, where ours is a whole `mwa-train` command; and it gives up all jobs at the first that fails,
without having told their ids, so nothing could go on with them.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mwa_lightning.errors import ConfigError
from mwa_lightning.sweeps.folder import Job, SweepFolder
from mwa_lightning.sweeps.job_loop import Running
from mwa_lightning.sweeps.local_launcher import TRAIN
from mwa_lightning.system.signals import held_back

# Seconds between two questions to SLURM.
_LOOK = 5.0
# What submitit's script does last: it becomes the job's command, so that SLURM's signals and the exit code are those of
# mwa-train. Every task of the job prints into the log.
_BECOME = ("/bin/sh", "-c", 'log=$1; shift; exec "$@" >> "$log" 2>&1', "sh")


class SlurmLauncher:
    """Submits jobs that start together as one array; they live on without the process that submitted them.

    Raises ConfigError if submitit or SLURM is not there, for keys that hydra-submitit-launcher does not know, for jobs
    that want different numbers of processes, and for a folder that SLURM cannot name.
    """

    own = False

    def __init__(self, config: DictConfig, folder: SweepFolder, configs: Sequence[DictConfig]) -> None:
        self.room = int(config.array_parallelism)
        self._folder = folder
        if "%" in str(folder.path):
            raise ConfigError(f"run_dir={folder.path}: SLURM takes % for one of its own signs; choose another folder")
        self._parameters = _parameters(config, configs)
        self._noted: dict[int, str | None] = {}
        self._queue = Queue()
        self._queue.look()

    def find(self, job: Job) -> Running | None:
        """The job, if the queue has it from an earlier start."""
        noted = {recorded.number: recorded.notes.get("slurm") for recorded in self._folder.read()}
        if noted != self._noted:  # by another process, that has submitted since the queue was looked at
            self._noted = noted
            self._queue.look()
        identity = noted.get(job.number)
        return SlurmJob(identity, self._queue) if identity is not None and self._queue.has(identity) else None

    def start(self, jobs: Sequence[Job]) -> list[Running | None]:
        """Submit jobs, and note their ids. Raises ConfigError with what SLURM has against them."""
        import submitit
        from submitit.core.utils import FailedJobError

        # One folder for all: SLURM does not make one for a job that starts before submitit has heard of its id.
        executor = submitit.AutoExecutor(
            folder=self._folder.path / ".submitit", cluster="slurm", slurm_python=f"{shlex.quote(sys.executable)} -P"
        )
        executor.update_parameters(**self._parameters)
        commands = [[*_BECOME, str(self._folder.log(job)), *TRAIN, *self._folder.command(job)] for job in jobs]
        with held_back():  # a terminal tells sbatch too, and nobody would know of jobs whose ids are not noted
            try:
                submitted = executor.map_array(os.execv, [_BECOME[0]] * len(jobs), commands)
            except FailedJobError as error:
                raise ConfigError(f"launcher=slurm: sbatch refused the jobs: {error}") from error
            for job, entry in zip(jobs, submitted, strict=True):
                self._folder.note(job.number, slurm=entry.job_id)
        self._queue.look()
        return [SlurmJob(entry.job_id, self._queue) for entry in submitted]


class SlurmJob:
    """A job in the queue."""

    def __init__(self, identity: str, queue: Queue) -> None:
        self._identity = identity
        self._queue = queue

    def poll(self) -> int | None:
        """None while the queue has the job; then the exit code that SLURM still knows, else 0."""
        if self._queue.has(self._identity):
            return None
        shown = _ask("scontrol", "show", "job", self._identity, "--oneliner") or ""
        code, _, number = shown.partition("ExitCode=")[2].partition(" ")[0].partition(":")
        return -int(number) if number.isdigit() and int(number) else int(code) if code.isdigit() else 0

    def end(self) -> None:
        """Cancel the job: SLURM sends SIGTERM, and SIGKILL later."""
        subprocess.run(["scancel", self._identity], check=False, capture_output=True)


class Queue:
    """Which of this user's jobs SLURM has queued or running, asked at most every few seconds."""

    def __init__(self) -> None:
        self._jobs: set[str] = set()
        self._asked = float("-inf")

    def has(self, identity: str) -> bool:
        """Whether a job is still there."""
        if time.monotonic() > self._asked + _LOOK:
            self.look()
        return identity in self._jobs

    def look(self) -> None:
        """Ask SLURM; where it does not answer, what it said before stands. Raises ConfigError if it never has."""
        answer = _ask("squeue", "--me", "--noheader", "--array", "--format=%i")
        if answer is not None:
            self._jobs = set(answer.split())
        elif self._asked == float("-inf"):
            raise ConfigError("launcher=slurm: squeue does not answer; start this where SLURM's commands work")
        self._asked = time.monotonic()


def _parameters(config: DictConfig, configs: Sequence[DictConfig]) -> dict[str, Any]:
    """What submitit is told: hydra-submitit-launcher's keys, with nodes, tasks and GPUs from the runs' trainer."""
    # Before submitit is imported, which reads it: the signal that SLURM sends before the time limit.
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = str(configs[0].training.requeue_signal)
    try:
        import submitit  # noqa: F401
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"launcher=slurm needs {error.name}, which is not installed: pip install 'mwa-lightning[slurm]'"
        ) from error
    shapes = {(int(each.trainer.num_nodes), each.trainer.devices, str(each.trainer.accelerator)) for each in configs}
    if len(shapes) > 1:
        raise ConfigError(
            "launcher=slurm: all jobs need the same trainer.num_nodes, trainer.devices and trainer.accelerator; "
            "start the others as another sweep"
        )
    ((nodes, devices, accelerator),) = shapes
    if devices == "auto":
        raise ConfigError("launcher=slurm: trainer.devices=auto does not say what to ask SLURM for; give a number")
    if config.signal_delay_s >= 60 * config.timeout_min:
        raise ConfigError(
            f"launcher.signal_delay_s={config.signal_delay_s}: jobs of launcher.timeout_min={config.timeout_min} would "
            "be told to end as soon as they start; raise launcher.timeout_min or lower launcher.signal_delay_s"
        )
    given = {str(key): value for key, value in config.items() if key not in ("name", "requeue")}
    if accelerator == "gpu" and given["gpus_per_node"] is None:
        given["gpus_per_node"] = devices
    wanted = {"name": "mwa-train", "nodes": nodes, "tasks_per_node": devices, "stderr_to_stdout": True, **given}
    try:
        queue = OmegaConf.merge(OmegaConf.structured(SlurmQueueConf), wanted)
    except OmegaConfBaseException as error:
        raise ConfigError(f"launcher=slurm: {str(error).splitlines()[0]}") from error
    parameters: Any = OmegaConf.to_container(queue)
    for key in ("_target_", "submitit_folder", "max_num_timeout"):
        del parameters[key]
    parameters["additional_parameters"] |= {"requeue" if config.requeue else "no-requeue": True}
    # As in scripts/slurm/train.sbatch: the shell outlives signals to all processes of the job, and srun, which does not
    # take the cores over from sbatch, ends all ranks with the first that fails.
    parameters["setup"] = ["trap : TERM USR1 USR2", *(parameters["setup"] or [])]
    parameters["srun_args"] = ["--kill-on-bad-exit=1", f"--cpus-per-task={parameters['cpus_per_task']}"]
    general = set(OmegaConf.structured(BaseQueueConf))
    return {key if key in general else f"slurm_{key}": value for key, value in parameters.items() if value is not None}


def _ask(*command: str) -> str | None:
    """What one of SLURM's commands says, None if it cannot."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

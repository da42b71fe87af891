"""`mwa-train --multirun`: a grid of runs; all are composed and checked before the first starts."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from mwa_lightning.errors import ConfigError, UserError
from mwa_lightning.report.terminal import deliver, say
from mwa_lightning.system.signals import end_if_held_back

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mwa_lightning.sweeps.folder import Job, SweepFolder
    from mwa_lightning.sweeps.job_loop import Launcher

    Compose = Callable[[list[str]], DictConfig]

KEYS_OF_SWEEP = ("launcher", "run_dir")


def multirun(arguments: Sequence[str], compose: Compose, *, show_only: bool = False) -> None:
    """Carry out every job of a grid that is not through yet.

    `compose` makes the checked configuration of a run from its words. With `show_only`, print the jobs and do nothing
    else. Without words of jobs, those that the folder records are resumed.

    Raises ConfigError, before anything is made, for words of any job that cannot be run; JobsFailed if jobs failed.
    """
    from mwa_lightning.cli.config.composing import compose_command
    from mwa_lightning.cli.config.search_path import current
    from mwa_lightning.cli.config.trusted import check_words
    from mwa_lightning.cli.grid import grid, split
    from mwa_lightning.sweeps.comparison import as_markdown, read_runs, table
    from mwa_lightning.sweeps.folder import SweepFolder
    from mwa_lightning.sweeps.job_loop import carry_out

    of_sweep, of_jobs = split(arguments, apart=KEYS_OF_SWEEP)
    settings = compose_command("multirun", of_sweep)
    given = None if settings.run_dir is None else SweepFolder(Path(settings.run_dir), current().words())
    recorded = [] if given is None else given.read()
    if given is not None and (given.path / "study.db").exists():
        raise ConfigError(f"run_dir={given.path}: holds a search, which mwa-tune resumes; choose another folder")
    if given is not None and not recorded and not of_jobs:
        raise ConfigError(
            f"run_dir={given.path}: holds no sweep to resume; give the overrides of one, such as seed=1,2"
        )
    if given is not None and not of_jobs:
        for job in recorded:
            check_words(job.overrides, origin=given.record)
    wanted = [job.overrides for job in recorded] if recorded and not of_jobs else grid(of_jobs)
    configs = [checked(words, compose, number) for number, words in enumerate(wanted)]
    jobs = numbered(wanted, recorded)
    if given is not None:
        for job, config in zip(jobs, configs, strict=True):
            given.run(job).check(config)
    if show_only:
        for job in jobs:
            deliver(f"{job.number}: {shlex.join(job.overrides)}")
        return
    with new_folder(configs, kind="multirun") if given is None else nullcontext(given) as folder:
        launcher = make_launcher(settings, folder, configs)
        with folder.locked():
            jobs = numbered(wanted, folder.read())
            kept = {job.number: job for job in folder.read()} | {job.number: job for job in jobs}
            folder.write([kept[number] for number in sorted(kept)])
        try:
            carry_out(jobs, folder, launcher)
        finally:
            say(f"\n{as_markdown(table(read_runs([folder.path])))}", end="")


def checked(words: Sequence[str], compose: Compose, number: int) -> DictConfig:
    """The configuration of a job. Raises ConfigError that names the job, Stopped if a signal came meanwhile."""
    end_if_held_back("before anything began; start the same command again")
    try:
        return compose(list(words))
    except UserError as error:
        raise ConfigError(f"job {number} ({shlex.join(words)}): {error}") from error


def numbered(wanted: Sequence[tuple[str, ...]], recorded: Sequence[Job]) -> list[Job]:
    """The jobs of these words: as they are recorded where they are, others with the next numbers."""
    from mwa_lightning.sweeps.folder import Job

    known = {job.overrides: job for job in recorded}
    following = 1 + max((job.number for job in recorded), default=-1)
    for words in wanted:
        if words not in known:
            known[words] = Job(following, words)
            following += 1
    return [known[words] for words in wanted]


@contextmanager
def new_folder(configs: Sequence[DictConfig], *, kind: str) -> Iterator[SweepFolder]:
    """`./logs/<task>/<name>/<time>_<kind>`, with the kind for a name where not all runs have the same."""
    from mwa_lightning.cli.config.search_path import current
    from mwa_lightning.sweeps.folder import SweepFolder
    from mwa_lightning.training.runs.run_directory import new_directory

    names = {str(config.name) for config in configs}
    name = names.pop() if len(names) == 1 else kind
    with new_directory(Path("logs").absolute() / str(configs[0].task.name) / name, kind=kind) as path:
        yield SweepFolder(path, current().words())


def make_launcher(settings: DictConfig, folder: SweepFolder, configs: Sequence[DictConfig]) -> Launcher:
    """The launcher that was chosen. Raises ConfigError if it cannot be had."""
    if settings.launcher.name == "slurm":
        from mwa_lightning.sweeps.slurm_launcher import SlurmLauncher

        return SlurmLauncher(settings.launcher, folder, configs)
    from mwa_lightning.sweeps.local_launcher import LocalLauncher

    return LocalLauncher(settings.launcher, folder)

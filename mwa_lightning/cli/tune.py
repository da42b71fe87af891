"""`mwa-tune`: a search over settings, with optuna; each trial is a run of its own."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mwa_lightning.cli.command import Command, run
from mwa_lightning.errors import ConfigError
from mwa_lightning.report.terminal import say

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mwa_lightning.sweeps.folder import SweepFolder
    from mwa_lightning.sweeps.search import Search

_USAGE = """
mwa-tune key=VALUES ... [group=choice ...] [key=value ...]
Search for the values with the best metric on the validation split. Words are those of mwa-train:

  mwa-tune experiment=scenes_mwa 'optim.lr=tag(log,interval(1e-4,1e-2))' 'adapter.mid_dim=choice(16,64)'
  mwa-tune adapter=mwa,head_only 'optim.lr=1e-3,3e-3' tune.trials=30 tune.pruner=hyperband launcher.jobs=2
  mwa-tune run_dir=FOLDER [tune.trials=60]       resumes a search; several at a time work together
"""
_MAIN_KEYS = (
    "run_dir",
    "tune.trials",
    "tune.objective",
    "tune.sampler",
    "tune.pruner",
    "tune.startup_trials",
    "tune.warmup_epochs",
    "tune.reduction_factor",
    "tune.seed",
    "launcher.jobs",
)
_KEYS_OF_SEARCH = ("launcher", "run_dir", "tune")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    command = Command(
        name="mwa-tune",
        config_name="tune",
        compose=_compose,
        execute=_execute,
        usage=_USAGE,
        main_keys=_MAIN_KEYS,
        listens=True,
    )
    return run(command, argv)


def _compose(arguments: list[str]) -> DictConfig:
    """The settings of the search, with the words of its runs as `words`, and the keys that were `typed`."""
    from omegaconf import open_dict

    from mwa_lightning.cli.config.composing import compose_command
    from mwa_lightning.cli.grid import parse, split

    of_search, of_runs = split(arguments, apart=_KEYS_OF_SEARCH)
    settings = compose_command("tune", of_search)
    with open_dict(settings):
        settings.words = of_runs
        settings.typed = [override.key_or_group for override in parse(of_search)]
    return settings


def _execute(settings: DictConfig) -> None:
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"mwa-tune needs {error.name}, which is not installed: pip install 'mwa-lightning[tune]'"
        ) from error
    # Imported before the search, which may outlive the files of this version.
    from mwa_lightning.sweeps import comparison  # noqa: F401
    from mwa_lightning.sweeps.study import database_errors

    with database_errors(settings.run_dir), ExitStack() as stack:
        search = _prepare(settings, stack)
        try:
            search.carry_out()
        finally:
            say(_result(search.folder, search.objective), end="")


def _prepare(settings: DictConfig, stack: ExitStack) -> Search:
    """The search, its words known to make runs; the stack removes a new folder that nothing came into.

    Raises ConfigError, before anything is made, where they do not, and Stopped if a signal came meanwhile.
    """
    from mwa_lightning.cli.config.schema import check_values
    from mwa_lightning.cli.config.search_path import current
    from mwa_lightning.cli.config.trusted import check_noted, check_words
    from mwa_lightning.cli.grid import parse
    from mwa_lightning.cli.multirun import checked, make_launcher, new_folder
    from mwa_lightning.cli.train import compose_checked
    from mwa_lightning.sweeps.folder import SweepFolder
    from mwa_lightning.sweeps.search import Search
    from mwa_lightning.sweeps.search_space import corners, distribution, word
    from mwa_lightning.sweeps.study import DATABASE, SharedStudy, recorded_search

    given = None if settings.run_dir is None else SweepFolder(Path(settings.run_dir), current().words())
    if given is not None and given.read() and not (given.path / DATABASE).is_file():
        raise ConfigError(
            f"run_dir={given.path}: holds a sweep of mwa-train --multirun, or a search that has lost its {DATABASE}; "
            "choose another folder"
        )
    noted = {} if given is None else recorded_search(given)
    if given is not None:
        check_noted({key: value for key, value in noted.items() if key != "words"}, origin=given.path / DATABASE)
        check_words([] if settings.words else noted.get("words", []), origin=given.path / DATABASE)
    words = list(settings.words) or noted.get("words", [])
    untyped = [key for key in settings.tune if f"tune.{key}" not in settings.typed]
    settings.tune.update({key: noted[key] for key in untyped if key in noted})
    check_values(settings)
    # Of a key given twice the last counts.
    overrides = {each.get_key_element(): (argument, each) for argument, each in zip(words, parse(words), strict=True)}
    space = {key: distribution(each) for key, (_, each) in overrides.items() if each.is_sweep_override()}
    fixed = [argument for argument, each in overrides.values() if not each.is_sweep_override()]
    if not words and given is not None:
        raise ConfigError(
            f"run_dir={given.path}: holds no search to resume; give the overrides of one, such as "
            "'optim.lr=tag(log,interval(1e-4,1e-2))'"
        )
    if not space:
        raise ConfigError("give at least one key several values, such as 'optim.lr=tag(log,interval(1e-4,1e-2))'")
    configs = [
        checked([*fixed, *(word(key, value) for key, value in point.items())], compose_checked, place)
        for place, point in enumerate(corners(space))
    ]
    objective = _objective(settings, configs)
    if any(config.training.monitor != objective for config in configs):
        # The epoch that a run keeps is the one that it is judged by.
        fixed.append(f"training.monitor={objective}")
    folder = given or stack.enter_context(new_folder(configs, kind="tune"))
    launcher = make_launcher(settings, folder, configs)
    max_epochs = max(config.trainer.max_epochs for config in configs)
    with folder.locked():
        if not folder.record.is_file():
            folder.write([])
        shared = SharedStudy(folder, space, settings.tune, max_epochs=max_epochs)
        stack.callback(shared.close)
        shared.agree({"words": words, **settings.tune, "objective": objective})
    return Search(shared, launcher, fixed, objective=objective, max_epochs=max_epochs)


def _objective(settings: DictConfig, configs: Sequence[DictConfig]) -> str:
    """The metric that is maximised. Raises ConfigError if it is not one of the validation split, or not one metric."""
    from mwa_lightning.cli.config.consistency import check_measured

    monitors = sorted({str(config.training.monitor) for config in configs})
    objective = str(settings.tune.objective or monitors[0])
    if not objective.startswith("val/"):
        raise ConfigError(
            f"tune.objective={objective}: settings are chosen on the validation split, never on test; take a metric "
            f"val/..., such as {monitors[0]}"
        )
    if settings.tune.objective is not None:
        for config in configs:
            check_measured(config, objective, key="tune.objective")
    if settings.tune.objective is None and len(monitors) > 1:
        raise ConfigError(f"the runs monitor different metrics ({', '.join(monitors)}): name one with tune.objective=")
    return objective


def _result(folder: SweepFolder, objective: str) -> str:
    """The table of the trials, and the words of the best."""
    from mwa_lightning.sweeps.comparison import THROUGH, as_markdown, read_runs, table

    jobs = folder.read()
    if not jobs:
        return ""
    runs = read_runs([folder.path])
    found = [each.figures.get(objective, math.nan) if each.state == THROUGH else math.nan for each in runs]
    through = [place for place, figure in enumerate(found) if not math.isnan(figure)]
    text = f"\n{as_markdown(table(runs, sort=objective if through else None))}"
    if through:
        best = max(through, key=lambda place: found[place])
        text += (
            f"\nbest: {folder.run(jobs[best]).path}\nmwa-train {shlex.join([*folder.further, *jobs[best].overrides])}\n"
        )
    return text


if __name__ == "__main__":
    sys.exit(main())

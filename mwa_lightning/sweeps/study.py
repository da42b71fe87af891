"""A study of optuna in a sweep's folder: what has been tried, by whom, and what is to be tried next."""

from __future__ import annotations

import fcntl
import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from mwa_lightning.errors import ConfigError
from mwa_lightning.sweeps.folder import SweepFolder

DATABASE = "study.db"
_DIRECTORY, _OWNER, _SEARCH = "directory", "owner", "search"


class SharedStudy:
    """`study.db` in a folder, which several processes, on one machine or more, may work on at a time.

    A trial that failed, or whose process has died, is tried again under a new number of optuna's and in the run
    directory of the first, so that it goes on from its checkpoint. What a trial is given depends on the seed and the
    trials before it alone, so a search that was stopped goes on as if it had not been.

    Everything but `report` wants the folder's lock. Raises ConfigError if the folder holds another search.
    """

    def __init__(
        self, folder: SweepFolder, space: Mapping[str, BaseDistribution], settings: DictConfig, *, max_epochs: int
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder = folder
        self._space = dict(space)
        self._settings = settings
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{folder.path / DATABASE}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
        self.study = optuna.create_study(
            storage=storage,
            study_name="study",
            load_if_exists=True,
            direction="maximize",
            pruner=_pruner(settings, max_epochs),
        )
        self._owner = _Owner(folder.path)

    def agree(self, search: Mapping[str, Any]) -> None:
        """Note what is sought, or hold it against what an earlier start has noted."""
        noted = self.study.user_attrs.get(_SEARCH)
        if noted is None:
            self.study.set_user_attr(_SEARCH, dict(search))
        elif changed := [key for key in search if search[key] != noted.get(key)]:
            key = changed[0]
            raise ConfigError(
                f"run_dir={self.folder.path}: holds a search with another {key}: {noted.get(key)}, not {search[key]}; "
                "choose another folder"
            )

    def retry(self, *, failed: bool) -> None:
        """Queue again the trials whose process has died, and with `failed` those that failed."""
        for trial in self.current():
            dead = trial.state == TrialState.RUNNING and not self._owner.alive(trial.user_attrs.get(_OWNER))
            if dead:
                self.study.tell(trial.number, state=TrialState.FAIL)
            if dead or (failed and trial.state == TrialState.FAIL):
                self.study.enqueue_trial(trial.params, user_attrs={_DIRECTORY: directory_of(trial)})

    def ask(self) -> Trial | None:
        """The next trial, None if there is none left to start."""
        trials = self.study.get_trials(deepcopy=False)
        queued = any(trial.state == TrialState.WAITING for trial in trials)
        if not queued and len(self.current()) >= self._settings.trials:
            return None
        self.study.sampler = _sampler(self._settings, number=len(trials))
        trial = self.study.ask(self._space)
        trial.set_user_attr(_OWNER, self._owner.name)
        return trial

    def current(self) -> list[FrozenTrial]:
        """The trials, of one that was tried again only the last."""
        return list({directory_of(trial): trial for trial in self.study.get_trials(deepcopy=False)}.values())

    def going_on(self) -> bool:
        """Whether any trial is still running, here or elsewhere."""
        return any(trial.state == TrialState.RUNNING for trial in self.current())

    def close(self) -> None:
        """Let others know that this process works on nothing any more."""
        self._owner.close()


def directory_of(trial: Trial | FrozenTrial) -> int:
    """The number of a trial's run directory: that of its first try."""
    return int(trial.user_attrs.get(_DIRECTORY, trial.number))


def recorded_words(folder: SweepFolder) -> list[str]:
    """The words that an earlier start was given, none if there was none."""
    if not (folder.path / DATABASE).is_file():
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = optuna.study.get_all_study_summaries(f"sqlite:///{folder.path / DATABASE}")
    noted = [summary.user_attrs[_SEARCH] for summary in studies if _SEARCH in summary.user_attrs]
    return list(noted[0]["words"]) if noted else []


class _Owner:
    """A file that this process holds locked while it lives, so that others can tell."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = f".owner-{secrets.token_hex(6)}"
        self._file = (folder / self.name).open("wb")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def alive(self, name: str | None) -> bool:
        """Whether the process of that file lives."""
        if name is None or not (self._folder / name).is_file():
            return False
        if name == self.name:
            return True
        with (self._folder / name).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        (self._folder / name).unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Remove the file."""
        (self._folder / self.name).unlink(missing_ok=True)
        self._file.close()


def _sampler(settings: DictConfig, *, number: int) -> BaseSampler:
    """A sampler for one trial, whose random numbers follow from the seed and the trial's number."""
    digest = hashlib.sha256(f"{settings.seed} {number}".encode()).digest()
    seed = int.from_bytes(digest[:4])
    if settings.sampler == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=settings.startup_trials)


def _pruner(settings: DictConfig, max_epochs: int) -> BasePruner:
    if settings.pruner == "none":
        return NopPruner()
    if settings.pruner == "median":
        first = settings.warmup_epochs + 1  # the first epoch after which a run may end
        return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=first)
    return HyperbandPruner(min_resource=1, max_resource=max_epochs, reduction_factor=settings.reduction_factor)

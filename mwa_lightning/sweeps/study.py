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
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from mwa_lightning.errors import ConfigError
from mwa_lightning.sweeps.folder import SweepFolder

DATABASE = "study.db"
_DIRECTORY, _OWNER, _SEARCH = "directory", "owner", "search"


class SharedStudy:
    """`study.db` in a folder, which several processes, on one machine or more, may work on at a time.

    A trial whose process has died waits to be taken up again, as what it was. One that failed is tried again under a
    new number of optuna's. Both go on in the same run directory, from their checkpoint. What a trial is given depends
    on the seed, its number and the trials before it alone, so a search that was stopped goes on as if it had not been.

    Everything but `report` wants the folder's lock. Raises ConfigError if the folder holds another search.
    """

    def __init__(
        self, folder: SweepFolder, space: Mapping[str, BaseDistribution], settings: DictConfig, *, max_epochs: int
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder = folder
        self._space = dict(space)
        self._settings = settings
        self._storage = optuna.storages.RDBStorage(
            f"sqlite:///{folder.path / DATABASE}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
        self.study = optuna.create_study(
            storage=self._storage,
            study_name="study",
            load_if_exists=True,
            direction="maximize",
            sampler=_SamplerByPlace(settings),
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
            if trial.state == TrialState.RUNNING and not self._owner.alive(trial.user_attrs.get(_OWNER)):
                self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            elif failed and trial.state == TrialState.FAIL:
                self.study.enqueue_trial(trial.params, user_attrs={_DIRECTORY: directory_of(trial)})

    def ask(self) -> Trial | None:
        """The next trial, None if there is none left to start."""
        trials = self.study.get_trials(deepcopy=False)
        queued = any(trial.state == TrialState.WAITING for trial in trials)
        if not queued and len(self.current()) >= self._settings.trials:
            return None
        trial = self.study.ask(self._space)
        trial.set_user_attr(_OWNER, self._owner.name)
        return trial

    def reported(self, trial: Trial) -> set[int]:
        """The epochs whose figure the study has of a trial."""
        return set(self._storage.get_trial(trial._trial_id).intermediate_values)

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


class _SamplerByPlace(BaseSampler):
    """Random numbers that follow from the seed, the number of the trial and the name of the parameter.

    So a trial that was half drawn when its process was killed is given the same values.
    """

    def __init__(self, settings: DictConfig) -> None:
        self._settings = settings

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: each parameter is drawn for itself."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A value."""
        settings = self._settings
        digest = hashlib.sha256(f"{settings.seed} {trial.number} {param_name}".encode()).digest()
        seed = int.from_bytes(digest[:4])
        sampler: BaseSampler = RandomSampler(seed=seed)
        if settings.sampler != "random":
            sampler = TPESampler(seed=seed, n_startup_trials=settings.startup_trials)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def _pruner(settings: DictConfig, max_epochs: int) -> BasePruner:
    if settings.pruner == "none":
        return NopPruner()
    if settings.pruner == "median":
        first = settings.warmup_epochs + 1  # the first epoch after which a run may end
        return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=first)
    return HyperbandPruner(min_resource=1, max_resource=max_epochs, reduction_factor=settings.reduction_factor)

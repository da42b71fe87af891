"""A study of optuna in a sweep's folder: what has been tried, by whom, and what is to be tried next."""

from __future__ import annotations

import fcntl
import hashlib
import re
import secrets
import shlex
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from mwa_lightning.errors import ConfigError, StorageError
from mwa_lightning.sweeps.folder import SweepFolder
from mwa_lightning.system.whole_files import whole_file, writing

DATABASE = "study.db"
_WAIT = 60  # seconds for another process to let go of the database
# What SQLite says, and what to do.
_DAMAGED = "it is damaged, put a whole one in its place, or choose another run_dir"
_ADVICE = {
    "locked": f"another program has kept it locked for {_WAIT} seconds, end that",
    "disk is full": "make room on its disk",
    "disk I/O": "mend its disk",
    "readonly": "make it writable",
    "unable to open": "make its folder writable",
    "table schema": "it is of another version of optuna, take that one, or choose another run_dir",
}
# A random name, so that a file which the study knows by it is ours to remove.
_OWNER_FILE = re.compile(r"\.owner-[0-9a-f]{12}")
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
        database = folder.path / DATABASE
        if not database.is_file():
            _make_database(database)
        self._storage = _storage(database)
        self.study = optuna.load_study(
            storage=self._storage,
            study_name="study",
            sampler=_SamplerByPlace(settings),
            pruner=_pruner(settings, max_epochs),
        )
        self._owner = _Owner(folder.path)

    def agree(self, search: Mapping[str, Any]) -> None:
        """Note what is sought and how, or hold it against what an earlier start has noted; the trials may change."""
        noted = self.study.user_attrs.get(_SEARCH, search)
        if changed := [key for key in search if search[key] != noted.get(key) and key != "trials"]:
            key = changed[0]
            other = "other words" if key == "words" else f"another {key}"
            before, now = (shlex.join(v) if key == "words" else v for v in (noted.get(key), search[key]))
            raise ConfigError(
                f"run_dir={self.folder.path}: holds a search with {other}: {before}, not {now}; choose another folder, "
                "or resume with run_dir alone"
            )
        self.study.set_user_attr(_SEARCH, dict(search))

    def retry(self, *, failed: bool, unless: Callable[[int], bool] = lambda number: False) -> None:
        """Queue again the trials whose process has died, and with `failed` those that failed.

        Of the latter not those whose run directory's number `unless` is true of.
        """
        for trial in self.current():
            if trial.state == TrialState.RUNNING and not self._owner.alive(trial.user_attrs.get(_OWNER)):
                self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            elif failed and trial.state == TrialState.FAIL and not unless(directory_of(trial)):
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
        """Whether any trial is still running, here or elsewhere, or waits to be."""
        return any(not trial.state.is_finished() for trial in self.current())

    def close(self) -> None:
        """Let others know that this process works on nothing any more."""
        self._owner.close()


@contextmanager
def database_errors(folder: str | None) -> Iterator[None]:
    """Turn what SQLite has against `study.db`, of the folder where one was given, into a StorageError of one line."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, RuntimeError, KeyError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        where = f"{DATABASE} of the search" if folder is None else str(Path(folder, DATABASE))
        what = next((advice for words, advice in _ADVICE.items() if words in reason), _DAMAGED)
        raise StorageError(f"{where} cannot be used ({reason}): {what}; then resume with its run_dir=") from error


def _reason(error: BaseException) -> str | None:
    """What SQLite said, or optuna of a database of another version or without its study; None for anything else."""
    if isinstance(error, DBAPIError):
        return str(error.orig)
    if isinstance(error, StorageInternalError) and isinstance(error.__cause__, SQLAlchemyError):
        return _reason(error.__cause__)
    said = str(error).strip("'\"").partition("\n")[0].rstrip(".")
    known = isinstance(error, StorageInternalError | SQLAlchemyError) or "table schema" in said or "not exist" in said
    return said if known else None


def _make_database(path: Path) -> None:
    """Make the database under a temporary name: one that is truncated, optuna neither takes nor mends."""
    with whole_file(path) as file:
        storage = _storage(Path(file.name))
        optuna.create_study(storage=storage, study_name="study", direction="maximize")
        storage.engine.dispose()


def _storage(path: Path) -> optuna.storages.RDBStorage:
    """The database of that path, whatever letters it has: in a URL some mean other things, `?` the end of the path."""
    connect = partial(sqlite3.connect, path, timeout=_WAIT, check_same_thread=False)
    return optuna.storages.RDBStorage("sqlite://", engine_kwargs={"creator": connect, "poolclass": QueuePool})


def directory_of(trial: Trial | FrozenTrial) -> int:
    """The number of a trial's run directory: that of its first try."""
    return int(trial.user_attrs.get(_DIRECTORY, trial.number))


def recorded_search(folder: SweepFolder) -> dict[str, Any]:
    """What an earlier start has noted, nothing if there was none. Raises ConfigError if it is lost."""
    if not (folder.path / DATABASE).is_file():
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = optuna.study.get_all_study_summaries(_storage(folder.path / DATABASE))
    noted = [summary.user_attrs[_SEARCH] for summary in studies if _SEARCH in summary.user_attrs]
    if not noted and folder.read():
        raise ConfigError(f"run_dir={folder.path}: its {DATABASE} holds no search: {_DAMAGED}")
    return dict(noted[0]) if noted else {}


class _Owner:
    """A file that this process holds locked while it lives, so that others can tell."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = f".owner-{secrets.token_hex(6)}"
        with writing(folder / self.name):
            self._file = (folder / self.name).open("xb")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def alive(self, name: str | None) -> bool:
        """Whether the process of that file lives."""
        if name is None or not _OWNER_FILE.fullmatch(name) or not (self._folder / name).is_file():
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
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
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

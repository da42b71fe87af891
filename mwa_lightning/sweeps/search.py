"""The search: asks the study for trials, starts their runs, watches their figures, ends the hopeless ones."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import Trial, TrialState

from mwa_lightning.errors import ConfigError, NotFinite, NotLearning, TrainingError
from mwa_lightning.report.terminal import say
from mwa_lightning.sweeps.folder import Job
from mwa_lightning.sweeps.job_loop import (
    LOOK,
    Elsewhere,
    JobsFailed,
    Launcher,
    Running,
    end_all,
    end_if_told,
    how,
    last_line,
    shown,
    told,
)
from mwa_lightning.sweeps.search_space import word
from mwa_lightning.sweeps.study import DATABASE, SharedStudy, directory_of
from mwa_lightning.system.signals import Signals

# So many new trials that fail one after the other have a reason in common.
_HOPELESS = 3
_CODE = "exit code"  # of a trial that failed


@dataclass
class _Attempt:
    """A trial whose run is under way."""

    trial: Trial
    job: Job
    process: Running
    reported: set[int]  # the epochs that an earlier start has told the study of
    epochs: set[int] = field(default_factory=set)
    hopeless: bool = False


class Search:
    """Works on a study until it has its trials; `words` are those that all its runs have."""

    def __init__(
        self, shared: SharedStudy, launcher: Launcher, words: Sequence[str], *, objective: str, max_epochs: int
    ) -> None:
        self.shared = shared
        self.folder = shared.folder
        self.launcher = launcher
        self.words = tuple(words)
        self.objective = objective
        self.max_epochs = max_epochs
        self._running: list[_Attempt] = []
        self._failures = 0
        self._signals = Signals()

    def carry_out(self) -> None:
        """Start trials and wait for them, those of other processes included, which are taken up if these die.

        Raises JobsFailed at the end if any trial failed, TrainingError if none finished or as soon as several fail
        one after the other, Stopped or Interrupted at a signal.
        """
        say(f"search in {self.folder.path}")
        with told(self.launcher) as self._signals:
            try:
                with self.folder.locked():
                    self.shared.retry(failed=True, unless=self._without_figure)
                while self._fill() or self._running or self._others():
                    for attempt in list(self._running):
                        self._look(attempt)
                    time.sleep(LOOK)
                    self._end_if_told()
            except BaseException:
                if self.launcher.own:
                    end_all([attempt.process for attempt in self._running])
                raise
            finally:
                self.shared.close()
        with self.folder.locked():
            current = self.shared.current()
        failed = [trial for trial in current if trial.state == TrialState.FAIL]
        if failed:
            codes = {directory_of(trial): trial.user_attrs.get(_CODE, 1) for trial in failed}
            raise JobsFailed(codes, total=len(current), folder=self.folder)
        if all(trial.state != TrialState.COMPLETE for trial in current):
            raise TrainingError(f"no trial of {len(current)} finished: see the logs in {self.folder.path}")

    def _fill(self) -> bool:
        """Start trials while there is room; whether any was."""
        begun = False
        while len(self._running) < self.launcher.room:
            self._end_if_told()
            with self.folder.locked():
                trial = self.shared.ask()
                if trial is None:
                    break
                self._begin(trial)
            begun = True
        return begun

    def _begin(self, trial: Trial) -> None:
        values = [word(key, value) for key, value in trial.params.items()]
        job = Job(directory_of(trial), (*self.words, *values))
        recorded = {earlier.number: earlier for earlier in self.folder.read()}
        job = recorded.setdefault(job.number, job)
        if not set(values).issubset(job.overrides):
            raise ConfigError(
                f"run_dir={self.folder.path}: its {DATABASE} is older than its {self.folder.record.name}, which has "
                f"other values for trial {job.number}: put the newest {DATABASE} back, or choose another run_dir"
            )
        self.folder.write([recorded[number] for number in sorted(recorded)])
        process = Done() if self.folder.run(job).finished else self.launcher.find(job)
        if process is None:
            (process,) = self.launcher.start([job])
            self.folder.note(job.number, failed=None, pruned=None)
            say(f"trial {job.number} started: {shown(job, without=self.words)}")
        assert process is not None, "its log was free"
        self._running.append(_Attempt(trial, job, process, reported=self.shared.reported(trial)))

    def _look(self, attempt: _Attempt) -> None:
        """Tell the study what a run has come to."""
        code = attempt.process.poll()
        run, number = self.folder.run(attempt.job), attempt.job.number
        for epoch, value in read_curve(run.metrics_table, self.objective).items():
            if epoch not in attempt.epochs:
                attempt.epochs.add(epoch)
                if epoch not in attempt.reported:
                    attempt.trial.report(value, epoch)
                hopeless = epoch < self.max_epochs and not attempt.hopeless and attempt.trial.should_prune()
                if hopeless and code is None:
                    attempt.hopeless = True
                    attempt.process.end()
        if code is None:
            return
        self._end_if_told()  # a terminal tells the runs too
        self._running.remove(attempt)
        study, found = self.shared.study, self._figure(number)
        # What comes to nothing is noted before the study is told: a trial that it knows of is not looked at again.
        if found is not None and not math.isnan(found):
            study.tell(attempt.trial, found)
            say(f"trial {number} through: {self.objective} {found:.2f}")
            self._failures = 0
        elif attempt.hopeless:
            last = max(attempt.epochs)  # it may have come further until it ended
            self.folder.note(number, pruned=last)
            study.tell(attempt.trial, state=TrialState.PRUNED)
            say(f"trial {number} pruned after epoch {last}")
            self._failures = 0
        elif code in (NotFinite.exit_code, NotLearning.exit_code):
            self.folder.note(number, failed=how(code))
            study.tell(attempt.trial, state=TrialState.PRUNED)  # so the sampler takes its values for the worst
            say(f"trial {number} {how(code)}: {last_line(self.folder, attempt.job)}")
            self._failures = 0
        elif found is None and isinstance(attempt.process, Elsewhere):
            # Its process had lost whoever started it, and ended on the way.
            (process,) = self.launcher.start([attempt.job])
            attempt.process = process or attempt.process
            self._running.append(attempt)
        else:
            said = f"{self.objective} is no number" if found is not None else last_line(self.folder, attempt.job)
            attempt.trial.set_user_attr(_CODE, code or 1)
            self.folder.note(number, failed=how(code))
            study.tell(attempt.trial, state=TrialState.FAIL)
            say(f"trial {number} {how(code)}: {said}")
            self._failures += number == attempt.trial.number  # one that is tried again has failed before
            if self._failures >= _HOPELESS:
                raise TrainingError(f"{_HOPELESS} trials one after the other failed; the last said: {said}")

    def _figure(self, number: int) -> float | None:
        """What a run has come to, NaN if it lacks the figure; None if it is not through."""
        run = self.folder.run(Job(number, ()))
        return run.read_metrics().get(self.objective, math.nan) if run.finished else None

    def _without_figure(self, number: int) -> bool:
        """Whether a run is through without the figure, which another start would not change."""
        found = self._figure(number)
        return found is not None and math.isnan(found)

    def _end_if_told(self) -> None:
        end_if_told(self._signals, self.folder, self.launcher)

    def _others(self) -> bool:
        """Whether other processes' trials are not through; those of dead ones are queued here, to be started next."""
        with self.folder.locked():
            self.shared.retry(failed=False)
            return self.shared.going_on()


class Done:
    """A run that was through before its trial was told."""

    def poll(self) -> int | None:
        return 0

    def end(self) -> None:
        """Nothing."""


def read_curve(table: Path, name: str) -> Mapping[int, float]:
    """A figure of `metrics.csv` by epoch, counted from 1; a row that is still being written is left out."""
    if not table.is_file():
        return {}
    text = table.read_text(encoding="utf-8")
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return {int(row["epoch"]) + 1: float(row["value"]) for row in rows if row["name"] == name and row["epoch"]}

"""A real study in a real database, over short processes."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from mwa_lightning.errors import ConfigError, TrainingError
from mwa_lightning.sweeps.comparison import read_runs
from mwa_lightning.sweeps.folder import Job, SweepFolder
from mwa_lightning.sweeps.job_loop import JobsFailed
from mwa_lightning.sweeps.local_launcher import LocalLauncher
from mwa_lightning.sweeps.search import Search, read_curve
from mwa_lightning.sweeps.study import SharedStudy, directory_of, recorded_search

Make = Callable[..., LocalLauncher]
SPACE: dict[str, BaseDistribution] = {"lr": FloatDistribution(1e-3, 10, log=True)}
SEARCH = {"words": ["lr=interval(0.001,10)"], "objective": "val/score", "seed": 42}


def settings(**changes: object) -> DictConfig:
    return OmegaConf.create(
        {
            "trials": 6,
            "sampler": "tpe",
            "pruner": "none",
            "startup_trials": 3,
            "warmup_epochs": 0,
            "reduction_factor": 3,
            "seed": 42,
            **changes,
        }
    )


def shared(path: Path, space: dict[str, BaseDistribution] = SPACE, **changes: object) -> SharedStudy:
    folder = SweepFolder(path / "search")
    with folder.locked():
        if not folder.record.is_file():
            folder.write([])
        study = SharedStudy(folder, space, settings(**changes), max_epochs=5)
        study.agree(SEARCH)
    return study


def search(study: SharedStudy, launcher: LocalLauncher, *words: str) -> Search:
    return Search(study, launcher, words, objective="val/score", max_epochs=5)


def tried(study: SharedStudy) -> list[float]:
    return [trial.params["lr"] for trial in study.study.get_trials()]


def states(study: SharedStudy) -> list[TrialState]:
    return [trial.state for trial in study.study.get_trials()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_study__goes_on_as_if_it_had_not_been_stopped(tmp_path: Path, sampler: str) -> None:
    """What is tried follows from the seed and what came out before, whatever process asks."""

    def work(path: Path, trials: int) -> list[float]:
        study = shared(path, sampler=sampler, trials=trials)
        while (trial := study.ask()) is not None:
            study.study.tell(trial, -((trial.params["lr"] - 2) ** 2))
        study.close()
        return tried(study)

    whole = work(tmp_path / "whole", 9)
    work(tmp_path / "parts", 2)
    work(tmp_path / "parts", 4)
    assert work(tmp_path / "parts", 9) == whole
    assert len(set(whole)) == 9
    other = shared(tmp_path / "other", sampler=sampler, seed=43)
    trial = other.ask()
    assert trial is not None
    assert trial.params["lr"] != whole[0]


def test_study__holds_what_is_sought_against_what_was(tmp_path: Path) -> None:
    study = shared(tmp_path)
    with pytest.raises(ConfigError, match="another seed: 42, not 43"):
        study.agree({**SEARCH, "seed": 43})
    assert recorded_search(study.folder) == SEARCH
    assert recorded_search(SweepFolder(tmp_path / "nothing")) == {}


@pytest.mark.parametrize("name", ["a?b=c", "50%41", "#1", "a b", "{x}", "gr\u00f6\u00dfe", "\udcff"])
def test_study__lies_in_its_folder_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    study = shared(tmp_path / name)
    assert study.ask() is not None
    assert recorded_search(study.folder) == SEARCH
    assert len(tried(shared(tmp_path / name))) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_study__trial_of_a_dead_process_is_tried_again_in_its_directory(tmp_path: Path) -> None:
    dead, alive, third = shared(tmp_path), shared(tmp_path), shared(tmp_path)
    first, second = dead.ask(), alive.ask()
    assert first is not None
    assert second is not None
    dead.close()  # as when it is killed: the lock is gone
    third.retry(failed=False)
    third.retry(failed=False)
    assert states(third) == [TrialState.WAITING, TrialState.RUNNING]
    again = third.ask()
    assert again is not None
    assert again.params == first.params
    assert (again.number, directory_of(again)) == (0, 0)
    third.study.tell(again, state=TrialState.FAIL)
    assert [directory_of(trial) for trial in third.current()] == [0, 1]
    third.retry(failed=True)
    assert states(third) == [TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
    more = third.ask()
    assert more is not None
    assert more.params == first.params
    assert (more.number, directory_of(more)) == (2, 0)


def test_search__finds_the_best(launcher: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = shared(tmp_path)
    search(study, launcher(study.folder, jobs=2), "epochs=2").carry_out()
    assert states(study) == [TrialState.COMPLETE] * 6
    for trial, job in zip(study.study.get_trials(), study.folder.read(), strict=True):
        assert job.overrides == ("epochs=2", f"lr={trial.params['lr']!r}")
        assert trial.value == study.folder.run(job).read_metrics()["val/score"] == 2 * trial.params["lr"]
        assert sorted(trial.intermediate_values) == [1, 2]
    assert study.study.best_value == 2 * max(tried(study))
    assert "trial 0 started: lr=" in capsys.readouterr().out
    # Asked for more, it goes on; asked for no more, it has nothing to do.
    more = shared(tmp_path, trials=8)
    search(more, launcher(more.folder), "epochs=2").carry_out()
    assert len(tried(more)) == 8
    search(more, launcher(more.folder), "epochs=2").carry_out()
    assert len(tried(more)) == 8


@pytest.mark.parametrize("pruner", ["median", pytest.param("hyperband", marks=pytest.mark.slow)])
def test_search__ends_hopeless_trials(launcher: Make, tmp_path: Path, pruner: str) -> None:
    """Each better than all later ones: a trial that is worse from its first epoch on is not worth its others."""
    space: dict[str, BaseDistribution] = {"lr": CategoricalDistribution(["9", "8", "7", "0.1", "0.01", "0.001"])}
    study = shared(tmp_path, space, pruner=pruner, startup_trials=2)
    for lr in ("9", "8", "7", "0.1", "0.01", "0.001"):
        study.study.enqueue_trial({"lr": lr})
    search(study, launcher(study.folder), "epochs=5", "epoch_s=0.7").carry_out()
    trials = study.study.get_trials()
    assert trials[0].state == TrialState.COMPLETE
    assert {trial.state for trial in trials[3:]} == {TrialState.PRUNED}
    for job, trial in zip(study.folder.read(), trials, strict=True):
        run = study.folder.run(job)
        assert run.finished == (trial.state == TrialState.COMPLETE)
        if trial.state == TrialState.PRUNED:
            after = job.notes["pruned"]
            assert after == max(trial.intermediate_values) < 5
            assert trial.value == pytest.approx(after * float(trial.params["lr"]))
            assert run.config.is_file()
            assert after in read_curve(run.metrics_table, "val/score")


def test_search__failed_trials_are_tried_again_when_it_is_started_again(launcher: Make, tmp_path: Path) -> None:
    study = shared(tmp_path, trials=2)
    (study.folder.path / "fail").touch()
    with pytest.raises(JobsFailed, match=r"2 of 2 jobs failed \(0, 1\)") as failed:
        search(study, launcher(study.folder, jobs=2), "fail=2").carry_out()
    assert failed.value.exit_code == 2
    (study.folder.path / "fail").unlink()
    again = shared(tmp_path, trials=2)
    search(again, launcher(again.folder), "fail=2").carry_out()
    assert states(again) == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 2
    assert tried(again)[:2] == tried(again)[2:]
    assert [job.number for job in again.folder.read()] == [0, 1]


def test_search__what_fails_is_said_in_one_line_and_shown(
    launcher: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Out of memory: a kill. A figure that is no number. The others are tried all the same."""
    space: dict[str, BaseDistribution] = {"lr": CategoricalDistribution(["1", "nan"])}
    study = shared(tmp_path, space, trials=3)
    (study.folder.path / "fail").touch()
    for lr in ("1", "nan", "1"):
        study.study.enqueue_trial({"lr": lr})
    killed = search(study, launcher(study.folder), "fail=-9")
    look = killed._look

    def mended(attempt: Any) -> None:
        look(attempt)
        if states(study)[0] == TrialState.FAIL:
            (study.folder.path / "fail").unlink(missing_ok=True)

    killed._look = mended  # type: ignore[method-assign]
    with pytest.raises(JobsFailed, match=r"2 of 3 jobs failed \(0, 1\)"):
        killed.carry_out()
    assert states(study) == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
    out = capsys.readouterr().out
    assert "trial 0 failed by signal 9: short run: error: as was asked for\n" in out
    assert "trial 1 failed: val/score is no number\n" in out
    assert [run.state for run in read_runs([study.folder.path])] == ["failed by signal 9", "through", "through"]


def test_search__directory_of_a_trial_is_deleted(launcher: Make, tmp_path: Path) -> None:
    """Of one that is through, its figure is known; one that is under way begins anew."""
    killed = shared(tmp_path, trials=2)
    first = search(killed, launcher(killed.folder), "epochs=2", "epoch_s=0.5")
    while states(killed)[:1] != [TrialState.COMPLETE] or states(killed)[-1] != TrialState.RUNNING:
        first._fill()
        for attempt in list(first._running):
            first._look(attempt)
    (attempt,) = first._running
    while not read_curve(killed.folder.run(attempt.job).metrics_table, "val/score"):
        time.sleep(0.01)
    attempt.process.end()
    attempt.process.poll()
    killed.close()
    for number in (0, 1):
        shutil.rmtree(killed.folder.path / str(number))
    again = shared(tmp_path, trials=2)
    search(again, launcher(again.folder), "epochs=2").carry_out()
    assert states(again) == [TrialState.COMPLETE] * 2
    assert [run.state for run in read_runs([again.folder.path])] == ["not started", "through"]


def test_search__gives_up_when_all_fail(launcher: Make, tmp_path: Path) -> None:
    study = shared(tmp_path, trials=50)
    (study.folder.path / "fail").touch()
    with pytest.raises(TrainingError, match="3 trials one after the other failed; the last said: short run: error"):
        search(study, launcher(study.folder), "fail=2").carry_out()
    assert len(tried(study)) == 3


def test_search__goes_on_after_failures_that_come_again(launcher: Make, tmp_path: Path) -> None:
    """Three that fail once more, first, end nothing: they had failed before. New ones are started."""
    study = shared(tmp_path, trials=3)
    (study.folder.path / "fail").touch()
    first = search(study, launcher(study.folder), "fail=2")
    first._failures = -9  # as if others had come through between
    with pytest.raises(JobsFailed):
        first.carry_out()
    again = shared(tmp_path, trials=4)
    with pytest.raises(JobsFailed, match="4 of 4 jobs failed"):
        search(again, launcher(again.folder), "fail=2").carry_out()
    assert [directory_of(trial) for trial in again.study.get_trials()] == [0, 1, 2, 0, 1, 2, 6]


def test_search__run_without_a_figure_is_not_tried_again(launcher: Make, tmp_path: Path) -> None:
    space: dict[str, BaseDistribution] = {"lr": CategoricalDistribution(["nan"])}
    for _ in range(2):
        study = shared(tmp_path, space, trials=1)
        with pytest.raises(JobsFailed, match="1 of 1 job failed"):
            search(study, launcher(study.folder)).carry_out()
        assert states(study) == [TrialState.FAIL]


def test_search__divergence_between_failures(launcher: Make, tmp_path: Path) -> None:
    """It is the settings' doing: the failures around it need have no reason in common."""
    space: dict[str, BaseDistribution] = {"lr": CategoricalDistribution(["0.1", "nan", "9"])}
    study = shared(tmp_path, space, trials=5)
    for lr in ("nan", "nan", "9", "nan", "0.1"):
        study.study.enqueue_trial({"lr": lr})
    with pytest.raises(JobsFailed, match=r"3 of 5 jobs failed \(0, 1, 3\)"):
        search(study, launcher(study.folder), "diverges_from=1").carry_out()


def test_search__database_older_than_the_record(launcher: Make, tmp_path: Path) -> None:
    study = shared(tmp_path)
    study.folder.write([Job(0, ("lr=5.0",))])
    with pytest.raises(ConfigError, match=r"study\.db is older than its multirun\.yaml.* for trial 0: put the newest"):
        search(study, launcher(study.folder)).carry_out()
    assert study.folder.read() == [Job(0, ("lr=5.0",))]


def test_search__killed_between_note_and_study(launcher: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial that diverged is looked at once more, and reads as what it was."""
    study = shared(tmp_path, trials=1)
    with monkeypatch.context() as patch:
        patch.setattr(SweepFolder, "note", lambda *_, **notes: 1 / (not notes.get("failed")))
        with pytest.raises(ZeroDivisionError):
            search(study, launcher(study.folder), "diverges_from=0").carry_out()
    again = shared(tmp_path, trials=1)
    with pytest.raises(TrainingError):
        search(again, launcher(again.folder), "diverges_from=0").carry_out()
    assert read_runs([again.folder.path])[0].state == "diverged (exit code 4)"


def test_search__diverged_trials_are_the_worst(
    launcher: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They end no search, however many come one after the other, are not tried again, and the sampler leaves them."""
    study = shared(tmp_path, trials=16, startup_trials=6)
    for lr in (9.0, 8.0, 7.0, 6.0):
        study.study.enqueue_trial({"lr": lr})
    search(study, launcher(study.folder), "diverges_from=1").carry_out()
    assert states(study)[:4] == [TrialState.PRUNED] * 4
    assert sum(lr >= 1 for lr in tried(study)[6:]) <= 2, tried(study)
    assert study.study.best_value == max(lr for lr in tried(study) if lr < 1)
    assert (
        "trial 3 diverged (exit code 4): short run: error: step 3: the loss is not finite\n" in capsys.readouterr().out
    )
    assert read_runs([study.folder.path])[0].state == "diverged (exit code 4)"
    again = shared(tmp_path, trials=16)
    search(again, launcher(study.folder)).carry_out()
    assert len(tried(again)) == 16


def test_search__trials_that_do_not_learn_are_pruned_with_their_reason(
    launcher: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More of them in a row than may fail: the search goes on to those that learn."""
    study = shared(tmp_path, trials=6, startup_trials=5)
    for lr in (9.0, 8.0, 7.0, 6.0, 0.5):
        study.study.enqueue_trial({"lr": lr})
    search(study, launcher(study.folder), "collapses_from=1").carry_out()
    assert states(study)[:5] == [TrialState.PRUNED] * 4 + [TrialState.COMPLETE]
    said = "trial 3 did not learn (exit code 5): short run: error: the embeddings have collapsed\n"
    assert said in capsys.readouterr().out
    assert read_runs([study.folder.path])[0].state == "did not learn (exit code 5)"


def test_search__all_trials_diverge(launcher: Make, tmp_path: Path) -> None:
    study = shared(tmp_path, trials=4)
    with pytest.raises(TrainingError, match="no trial of 4 finished: see the logs in "):
        search(study, launcher(study.folder), "diverges_from=0").carry_out()


def test_search__run_that_outlived_its_search_is_not_repeated(launcher: Make, tmp_path: Path) -> None:
    """Killed between starting a run and hearing of its end; the run itself went on."""
    killed = shared(tmp_path, trials=2)
    orphan = search(killed, launcher(killed.folder), "epochs=3", "epoch_s=0.5")
    assert orphan._fill()
    killed.close()
    again = shared(tmp_path, trials=2)
    search(again, launcher(again.folder), "epochs=3", "epoch_s=0.5").carry_out()
    assert states(again) == [TrialState.COMPLETE, TrialState.COMPLETE]
    starts = (again.folder.path / "0" / "starts").read_text().splitlines()
    assert len(starts) == 1


def test_search__takes_up_the_trial_of_one_that_dies_while_it_waits(launcher: Make, tmp_path: Path) -> None:
    dies, waits = (shared(tmp_path, trials=2) for _ in range(2))
    assert dies.ask() is not None
    work = threading.Thread(target=search(waits, launcher(waits.folder)).carry_out)
    work.start()
    limit = time.monotonic() + 60
    while states(dies) != [TrialState.RUNNING, TrialState.COMPLETE] and time.monotonic() < limit:
        time.sleep(0.05)
    assert work.is_alive()
    dies.close()  # as when it is killed: the lock is gone
    work.join(timeout=60)
    assert states(shared(tmp_path)) == [TrialState.COMPLETE] * 2
    assert [run.state for run in read_runs([waits.folder.path])] == ["through"] * 2


def test_search__several_work_on_one_study(launcher: Make, tmp_path: Path) -> None:
    studies = [shared(tmp_path, trials=6) for _ in range(2)]
    errors: list[BaseException] = []

    def work(study: SharedStudy) -> None:
        try:
            search(study, launcher(study.folder), "epochs=2", "epoch_s=0.2").carry_out()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(study,)) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert errors == []
    last = shared(tmp_path)
    trials = last.study.get_trials()
    assert states(last) == [TrialState.COMPLETE] * 6
    assert len({trial.user_attrs["owner"] for trial in trials}) == 2
    assert [job.number for job in last.folder.read()] == list(range(6))
    assert all(len((last.folder.path / str(n) / "starts").read_text().splitlines()) == 1 for n in range(6))


def test_read_curve__by_epoch_from_one_without_the_row_in_writing(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    assert read_curve(table, "val/a") == {}
    table.write_text("step,epoch,name,value\n3,0,val/a,1.5\n3,0,val/b,9\n1,,val/a,7\n6,1,val/a,2.5\n9,2,val/a,3")
    assert read_curve(table, "val/a") == {1: 1.5, 2: 2.5}

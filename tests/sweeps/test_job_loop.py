"""Real processes, short ones: order, threads, failures, locks, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mwa_lightning.errors import Interrupted, Stopped
from mwa_lightning.sweeps import local_launcher as local
from mwa_lightning.sweeps.comparison import read_runs
from mwa_lightning.sweeps.folder import Job, SweepFolder
from mwa_lightning.sweeps.job_loop import JobsFailed, carry_out
from mwa_lightning.sweeps.local_launcher import LocalLauncher
from mwa_lightning.training.distributed.cpus import Cpus
from tests.sweeps.conftest import SHORT

Make = Callable[..., LocalLauncher]


def sweep(path: Path, *jobs: tuple[str, ...]) -> tuple[SweepFolder, list[Job]]:
    folder = SweepFolder(path / "sweep")
    made = [Job(number, overrides) for number, overrides in enumerate(jobs)]
    folder.write(made)
    return folder, made


def starts(folder: SweepFolder, number: int) -> list[list[str]]:
    return [line.split() for line in (folder.path / str(number) / "starts").read_text().splitlines()]


def test_carry_out__each_job_is_a_process_of_its_own(launcher: Make, tmp_path: Path) -> None:
    folder, jobs = sweep(tmp_path, ("lr=1",), ("lr=2",), ("lr=3",))
    carry_out(jobs, folder, launcher(folder))
    assert [folder.run(job).read_metrics()["val/score"] for job in jobs] == [1.0, 2.0, 3.0]
    identities = {starts(folder, number)[0][0] for number in range(3)}
    assert len(identities) == 3
    assert str(os.getpid()) not in identities


def test_carry_out__what_is_through_is_not_repeated(
    launcher: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, jobs = sweep(tmp_path, ("lr=1", "epochs=2"), ("lr=2", "epochs=2"))
    carry_out(jobs[:1], folder, launcher(folder))
    carry_out(jobs, folder, launcher(folder))
    assert [len(starts(folder, number)) for number in (0, 1)] == [1, 1]
    out = capsys.readouterr().out
    assert "sweep of 2 jobs, 1 through before" in out
    assert "job 1 started: lr=2\n" in out  # what it shares with the others need not be said


def test_carry_out__failure_does_not_stop_the_rest(
    launcher: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, jobs = sweep(tmp_path, ("lr=1", "fail=3"), ("lr=2",), ("lr=3", "fail=1"))
    (folder.path / "fail").touch()
    with pytest.raises(JobsFailed, match=r"2 of 3 jobs failed \(0, 2\)") as caught:
        carry_out(jobs, folder, launcher(folder))
    assert caught.value.exit_code == 3
    assert str(caught.value).endswith(
        f": see {folder.path / '0.log'}; with run_dir={folder.path} they are started again"
    )
    assert folder.run(jobs[1]).finished
    assert "job 0 failed (exit code 3): short run: error: as was asked for" in capsys.readouterr().out
    states = {run.label: run.state for run in read_runs([folder.path])}
    assert states == {"0": "failed (exit code 3)", "1": "through", "2": "failed (exit code 1)"}
    (folder.path / "fail").unlink()
    carry_out(jobs, folder, launcher(folder))
    assert folder.read() == jobs
    assert [len(starts(folder, number)) for number in range(3)] == [1, 1, 1]


def test_carry_out__a_failed_job_that_another_process_has_come_through_with(launcher: Make, tmp_path: Path) -> None:
    folder, jobs = sweep(tmp_path, ("lr=1", "fail=3"), ("lr=2", "epoch_s=2"))
    (folder.path / "fail").touch()
    timer = threading.Timer(1.5, launcher(folder).start, [[Job(0, ("lr=1",))]])
    timer.start()
    carry_out(jobs, folder, launcher(folder, jobs=2))
    assert all(folder.run(job).finished for job in jobs)
    assert {run.label: run.state for run in read_runs([folder.path])} == {"0": "through", "1": "through"}


def test_carry_out__threads_and_cards_are_divided(
    launcher: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(local, "cpus_here", lambda processes: Cpus(4, 6 // processes, 2.0))
    monkeypatch.setenv("SLURM_NTASKS", "7")
    folder, jobs = sweep(tmp_path, *[("lr=1", f"seed={seed}", "epoch_s=0.4") for seed in range(4)])
    carry_out(jobs, folder, launcher(folder, jobs=2, gpus=[3, 5, 7]))
    found = [starts(folder, number)[0] for number in range(4)]
    assert {share for _, share, _ in found} == {"3"}
    assert sorted(cards for *_, cards in found) == ["3,7", "3,7", "5", "5"]
    assert {found[0][2], found[1][2]} == {"3,7", "5"}


def test_carry_out__a_job_that_is_running_already_is_waited_for(launcher: Make, tmp_path: Path) -> None:
    """What a killed sweep has left behind: its process holds the log."""
    folder, jobs = sweep(tmp_path, ("lr=1", "epoch_s=1"))
    with folder.log(jobs[0]).open("ab") as log:
        started = launcher(folder).start(jobs)
        assert len(started) == 1
        assert log.tell() == 0
    assert launcher(folder).find(jobs[0]) is not None
    assert launcher(folder).start(jobs) == [None]
    carry_out(jobs, folder, launcher(folder))
    assert len(starts(folder, 0)) == 1
    assert launcher(folder).find(jobs[0]) is None


def test_carry_out__a_job_that_another_left_unfinished_is_started(launcher: Make, tmp_path: Path) -> None:
    folder, jobs = sweep(tmp_path, ("lr=1", "epochs=3", "epoch_s=0.5"))
    (running,) = launcher(folder).start(jobs)
    assert running is not None
    killer = threading.Timer(1.5, running.end)
    killer.start()
    # Ended by the other while this one waits for it.
    thread = threading.Thread(target=carry_out, args=(jobs, folder, launcher(folder)))
    thread.start()
    while running.poll() is None:
        time.sleep(0.05)
    thread.join(timeout=30)
    assert folder.run(jobs[0]).finished
    assert len(starts(folder, 0)) == 2


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGTERM, Stopped), (signal.SIGUSR1, Stopped), (signal.SIGINT, Interrupted)],
)
def test_carry_out__a_signal_ends_the_jobs_too(
    launcher: Make, tmp_path: Path, number: signal.Signals, kind: type[BaseException], interruptible: None
) -> None:
    folder, jobs = sweep(tmp_path, ("lr=1", "epochs=100", "epoch_s=0.2"), ("lr=2",))
    timer = threading.Timer(1.5, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(kind, match=f"^stopped by {number.name}; resume with run_dir={folder.path}$"):
        carry_out(jobs, folder, launcher(folder))
    assert folder.read() == jobs  # nothing is noted as failed
    assert launcher(folder).find(jobs[0]) is None  # its process is gone
    assert not (folder.path / "1").exists()


def test_local_process__that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mwa_lightning.sweeps import local_launcher as local

    monkeypatch.setattr(local, "_PATIENCE", 0.5)
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([SHORT[0], "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    job = local.LocalProcess(process)
    job.end()
    limit = time.monotonic() + 20
    while job.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    assert job.poll() == -signal.SIGKILL

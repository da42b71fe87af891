"""`launcher=slurm` with commands that stand in for SLURM's: what is submitted, when, and what is known of it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from mwa_lightning.cli.config.composing import compose_groups
from mwa_lightning.errors import ConfigError, Interrupted
from mwa_lightning.sweeps import job_loop as launching
from mwa_lightning.sweeps import slurm_launcher as slurm
from mwa_lightning.sweeps.folder import Job, SweepFolder
from mwa_lightning.sweeps.job_loop import JobsFailed, carry_out
from mwa_lightning.sweeps.slurm_launcher import SlurmLauncher

pytest.importorskip("submitit")

# Jobs of arrays 1, 2, ... wait in the queue for ever. The log's folder has to be there when a job starts.
SBATCH = """
import os, pathlib, re, signal, sys, time
here = pathlib.Path(__file__).parent
script = pathlib.Path(sys.argv[-1]).read_text()
array = 1 + len(list(here.glob("array*")))
(here / f"array{array}").write_text(script)
last = int(re.search("--array=0-([0-9]+)", script)[1]) if "--array" in script else None
log = re.search("--output=(.*)", script)[1].replace("%A", str(array)).replace("%j", str(array))
if not pathlib.Path(log).parent.is_dir():
    sys.exit(f"no folder for {log}")
with (here / "queue").open("a") as queue:
    queue.writelines([f"{array}\\n"] if last is None else [f"{array}_{place}\\n" for place in range(last + 1)])
if (here / "interrupt").exists():
    for process in (os.getppid(), os.getpid()):
        os.kill(process, signal.SIGINT)
time.sleep(0.5)
print(f"Submitted batch job {array}")
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the commands, with what they are given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "queue").touch()
    for name, text in {
        "sbatch": f"#!{sys.executable}\n{SBATCH}",
        "squeue": f"#!/bin/sh\ncat {folder / 'queue'}\n",
        "srun": "#!/bin/sh\n",  # submitit looks for it
        "scontrol": "#!/bin/sh\n",
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "_LOOK", 0.1)
    monkeypatch.setattr(launching, "LOOK", 0.05)
    return folder


def make(folder: SweepFolder, **changes: object) -> SlurmLauncher:
    config = compose_groups("multirun", {"launcher": "slurm"}).launcher
    run = {"trainer": {"devices": 1, "num_nodes": 1, "accelerator": "cpu"}, "training": {"requeue_signal": "USR1"}}
    merged = OmegaConf.merge(config, changes)
    assert isinstance(merged, DictConfig)
    return SlurmLauncher(merged, folder, [OmegaConf.create(run)])


def sweep(path: Path, count: int) -> tuple[SweepFolder, list[Job]]:
    folder = SweepFolder(path / "sweep")
    jobs = [Job(number, (f"seed={number}",)) for number in range(count)]
    folder.write(jobs)
    return folder, jobs


def finish(folder: SweepFolder, jobs: list[Job]) -> None:
    for job in jobs:
        folder.run(job).path.mkdir()
        (folder.run(job).path / "metrics.json").write_text(json.dumps({"time/fit_s": 1.0}))


def until(what: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.02)


def ids(folder: SweepFolder) -> list[str | None]:
    return [job.notes.get("slurm") for job in folder.read()]


def test_room__a_search_has_few_trials_at_a_time(programs: Path, tmp_path: Path) -> None:
    assert make(SweepFolder(tmp_path)).room == 8
    assert make(SweepFolder(tmp_path), array_parallelism=2).room == 2


def test_carry_out__all_jobs_are_one_array(programs: Path, tmp_path: Path) -> None:
    """SLURM sees to how many run at a time."""
    folder, jobs = sweep(tmp_path, 4)
    thread = threading.Thread(target=carry_out, args=(jobs, folder, make(folder, array_parallelism=2)))
    thread.start()
    until(lambda: None not in ids(folder))
    finish(folder, jobs)
    (programs / "queue").write_text("")
    thread.join(timeout=30)
    assert ids(folder) == ["1_0", "1_1", "1_2", "1_3"]
    script = (programs / "array1").read_text()
    assert "--array=0-3%2\n" in script
    assert f"{sys.executable} -P -u -m submitit" in script  # or it would import from the current directory


def test_carry_out__ctrl_c_while_jobs_are_submitted(programs: Path, tmp_path: Path, interruptible: None) -> None:
    """A terminal tells sbatch, too: the jobs are known all the same, and found again."""
    folder, jobs = sweep(tmp_path, 2)
    (programs / "interrupt").touch()
    with pytest.raises(Interrupted, match="stopped by SIGINT, its jobs go on"):
        carry_out(jobs, folder, make(folder))
    assert ids(folder) == ["1_0", "1_1"]
    assert make(folder).find(jobs[1]) is not None


def test_carry_out__two_in_one_folder_submit_once(
    programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, jobs = sweep(tmp_path, 2)
    # Both have looked at the queue before anything is in it.
    folders = [SweepFolder(folder.path) for _ in range(2)]
    sweeps = [(each, make(each)) for each in folders]
    threads = [threading.Thread(target=carry_out, args=(jobs, *each)) for each in sweeps]
    for thread in threads:
        thread.start()
    said = ""
    while said.count("job 1 ") < 2:
        time.sleep(0.02)
        said += capsys.readouterr().out
    finish(folder, jobs)
    (programs / "queue").write_text("")
    for thread in threads:
        thread.join(timeout=30)
    assert not (programs / "array2").exists()
    assert "job 1 is running already" in said


def test_carry_out__jobs_that_end_unfinished_have_failed(programs: Path, tmp_path: Path) -> None:
    folder, jobs = sweep(tmp_path, 2)
    launcher = make(folder)
    launcher.start(jobs)
    finish(folder, jobs[:1])
    (programs / "queue").write_text("1_1\n")
    threading.Timer(1.0, (programs / "queue").write_text, [""]).start()
    with pytest.raises(JobsFailed, match=r"1 of 2 jobs failed \(1\)"):
        carry_out(jobs, folder, launcher)


def test_folder__with_a_sign_of_slurm(programs: Path, tmp_path: Path) -> None:
    """SLURM would write into another."""
    with pytest.raises(ConfigError, match=r"run_dir=.*/50%j: SLURM takes % for one of its own"):
        make(SweepFolder(tmp_path / "50%j"))


@pytest.mark.parametrize("delay", [240, 300])
def test_signal_delay__that_leaves_no_time(programs: Path, tmp_path: Path, delay: int) -> None:
    with pytest.raises(ConfigError, match=rf"launcher\.signal_delay_s={delay}: jobs of launcher\.timeout_min=4 would"):
        make(SweepFolder(tmp_path), signal_delay_s=delay, timeout_min=4)
    make(SweepFolder(tmp_path), signal_delay_s=239, timeout_min=4)

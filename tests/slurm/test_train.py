"""The very sbatch file on a real cluster: two tasks, requeued by a signal and by pre-emption, and what is refused."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mwa_lightning.data.shard_writing import write_shards
from mwa_lightning.data.sources import find_source
from tests.leftovers import left_by
from tests.slurm.cluster import Cluster
from tests.slurm.runs import PLACE, SCRIPT, WORDS, output_of, run_of, submit, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_train__two_tasks_speak_with_one_voice(whole: Path, folder: Path) -> None:
    said = output_of(folder, whole.name)
    for line in ("What trains", "epoch 1 of 2", "Retrieval on the test split"):
        assert said.count(line) == 1, said
    assert "warning" not in said.lower(), said
    assert (whole / "train.log").read_text().count("What trains") == 1
    assert len([row for row in left_by(whole).rows if row["name"] == "train/loss"]) == 24


def test_train__two_tasks_share_the_weights(jobs: Cluster, folder: Path) -> None:
    job = submit(jobs, folder, "trainer=fsdp", "trainer.max_steps=3")
    assert jobs.wait(job, seconds=600) == "COMPLETED", output_of(folder, job)
    assert output_of(folder, job).count("Retrieval on the test split") == 1
    run = run_of(folder, job)
    assert "strategy: fsdp" in (run / "config.yaml").read_text()
    assert len([row for row in left_by(run).rows if row["name"] == "train/loss"]) == 3


def test_train__shards_copied_to_the_disk_of_each_machine_as_documented(
    jobs: Cluster, folder: Path, whole: Path
) -> None:
    """With the lines of docs/cluster.md in a copy of the script; requeued in mid-run, all is copied again."""
    scratch, local = folder / "scratch", folder / "local_disk"
    local.mkdir()
    write_shards(find_source(layout="scenes", root=folder / "scenes"), scratch / "coco-shards", shard_bytes=60_000)
    text = (SCRIPT.parents[2] / "docs" / "cluster.md").read_text()
    ((copying, reading),) = re.findall(r"^(srun .* cp -r .*)\n(data.shards=.*)$", text, re.MULTILINE)
    script = folder / "train.sbatch"
    before, training = SCRIPT.read_text().split("srun --kill-on-bad-exit", 1)
    training = training.replace("mwa-train ", f"mwa-train {reading} ")
    script.write_text(f"{before}{copying}\nsrun --kill-on-bad-exit{training}")
    machine = replace(jobs, environment=jobs.environment | {"SCRATCH": str(scratch), "TMPDIR": str(local)})
    job = machine.submit(*PLACE, f"--chdir={folder}", script, *WORDS)
    wait_for_step(run_of(folder, job), 3)
    machine.run("scancel", "--signal=USR1", job)
    machine.wait(job, "PENDING", seconds=120)
    assert machine.wait(job, seconds=600) == "COMPLETED", output_of(folder, job)
    assert output_of(folder, job).count("resuming from") == 1
    assert left_by(run_of(folder, job)) == left_by(whole)


@pytest.mark.parametrize("step", [3, 16])
def test_pain_4__requeued_by_the_signal_goes_on_in_its_directory(
    step: int, jobs: Cluster, folder: Path, whole: Path
) -> None:
    """In the middle of the first epoch and of the second; what comes out is what the undisturbed job left."""
    job = submit(jobs, folder)
    wait_for_step(run_of(folder, job), step)
    jobs.run("scancel", "--signal=USR1", job)
    jobs.wait(job, "PENDING", seconds=120)
    said = output_of(folder, job)
    stopped = re.search(r"mwa-train: stopped by SIGUSR1 after step (\d+), which is saved; job (\d+) was requeued", said)
    assert stopped is not None, said
    assert step < int(stopped[1]) < 12 * (step // 12 + 1)
    assert jobs.wait(job, seconds=600) == "COMPLETED", output_of(folder, job)
    assert "Restarts=1" in jobs.run("scontrol", "show", "job", job)
    assert output_of(folder, job).count("resuming from") == 1
    assert left_by(run_of(folder, job)) == left_by(whole)


def test_train__requeued_goes_back_to_its_own_checkpoint_once(jobs: Cluster, folder: Path, whole: Path) -> None:
    """The command names the same checkpoint at every start."""
    often = "training.checkpoint_every_n_steps=4"
    job = submit(jobs, folder, often, "training.requeue=false")
    run = run_of(folder, job)
    wait_for_step(run, 9)
    jobs.run("scancel", "--signal=USR1", job)
    assert jobs.wait(job, seconds=120) == "FAILED"  # with exit code 75
    back = submit(jobs, folder, often, f"run_dir={run}", f"resume={run}/checkpoints/previous.ckpt")
    end = time.monotonic() + 300
    while (run / "train.log").read_text().count("wrote last.ckpt") < 4:  # two, that at the signal, and one since
        assert time.monotonic() < end, output_of(folder, back)
        time.sleep(0.05)
    jobs.run("scancel", "--signal=USR1", back)
    jobs.wait(back, "PENDING", seconds=120)
    assert jobs.wait(back, seconds=600) == "COMPLETED", output_of(folder, back)
    assert re.findall(r"resuming from .*/(.*)$", output_of(folder, back), re.MULTILINE) == [
        "previous.ckpt",
        "last.ckpt",
    ]
    assert left_by(run) == left_by(whole)


def test_pain_5__preempted_job_makes_room_and_goes_on_as_the_same_run_of_wandb(
    jobs: Cluster, folder: Path, whole: Path
) -> None:
    job = submit(jobs, folder, "logger=wandb", "logger.mode=offline")
    wait_for_step(run_of(folder, job), 4)
    urgent = jobs.submit("--partition=urgent", "--ntasks=2", f"--output={folder / 'urgent.out'}", "--wrap=sleep 1")
    assert jobs.wait(urgent) == "COMPLETED"
    said = output_of(folder, job)
    assert re.search(r"mwa-train: stopped by SIGTERM after step \d+, which is saved; job \d+ was requeued", said), said
    assert jobs.wait(job, seconds=600) == "COMPLETED", output_of(folder, job)
    run = run_of(folder, job)
    assert left_by(run) == left_by(whole)
    identity = (run / "wandb" / "id").read_text()
    starts = list(run.glob("wandb/offline-run-*"))
    assert len(starts) == 2
    assert all(start.name.endswith(f"-{identity}") for start in starts)


def test_train__cancelled_job_saves_and_stays_cancelled(jobs: Cluster, folder: Path) -> None:
    job = submit(jobs, folder)
    wait_for_step(run_of(folder, job), 2)
    jobs.run("scancel", job)
    end = time.monotonic() + 120
    while "COMPLETING" in jobs.run("squeue", "--noheader", "--format=%T", f"--jobs={job}"):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert jobs.state(job) == "CANCELLED"
    said = output_of(folder, job)
    assert re.search(r"stopped by SIGTERM after step \d+, which is saved", said)
    assert "was requeued" not in said.replace("was not requeued", "")
    # By themselves, both of them: SLURM kills what is left after a minute, and its machines are taken until then.
    assert re.search(r"tasks? (0-)?1: Exited with exit code 75", said), said


def test_train__tasks_that_do_not_fit_are_one_line_and_a_failed_rank_ends_the_job(jobs: Cluster, folder: Path) -> None:
    job = submit(jobs, folder, "trainer.devices=3")
    assert jobs.wait(job, seconds=300) == "FAILED"
    said = output_of(folder, job)
    assert "mwa-train: error: srun started 2 tasks on 1 machine, trainer.devices=3" in said
    assert "Traceback" not in said
    assert not run_of(folder, job).exists()


def test_pain_2__array_jobs_have_directories_of_their_own_and_one_configuration(jobs: Cluster, folder: Path) -> None:
    """Each rank composes another seed; that of the first counts."""
    seed = "seed='${oc.decode:${oc.env:SLURM_PROCID}}'"
    job = submit(jobs, folder, seed, "trainer.max_steps=2", place=("--array=0-1", "--output=%x-%j.out"))
    for index in range(2):
        assert jobs.wait(f"{job}_{index}", seconds=600) == "COMPLETED"
    left = [left_by(run_of(folder, f"{job}_{index}")) for index in range(2)]
    assert left[0] == left[1]
    config = (run_of(folder, f"{job}_0") / "config.yaml").read_text()
    assert "\nseed: 0\n" in config


@pytest.mark.parametrize(("array", "index"), [("0-1", 0), ("0-1", 1), ("0-1%1", 1)])
def test_train__one_job_of_an_array_is_requeued(array: str, index: int, jobs: Cluster, folder: Path) -> None:
    """The last one has the number of the array; while the other runs too, and when that is through."""
    place = (f"--array={array}", "--ntasks-per-node=1", "--output=%x-%A_%a.out")
    job = submit(jobs, folder, place=place)
    told, other = f"{job}_{index}", f"{job}_{1 - index}"
    wait_for_step(run_of(folder, told), 3)
    assert (jobs.run("squeue", "--noheader", "--format=%A", f"--jobs={told}") == job) == (index == 1)
    jobs.run("scancel", "--signal=USR1", told)
    jobs.wait(told, "PENDING", seconds=120)
    assert re.search(rf"stopped by SIGUSR1 after step \d+, .*; job {told} was requeued", output_of(folder, told))
    for each in (told, other):
        assert jobs.wait(each, seconds=600) == "COMPLETED", output_of(folder, each)
    assert [jobs.about(each, "Restarts") for each in (told, other)] == ["1", "0"]
    assert [output_of(folder, each).count("resuming from") for each in (told, other)] == [1, 0]
    assert left_by(run_of(folder, told)) == left_by(run_of(folder, other))

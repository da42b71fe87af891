"""The very sbatch file on a real cluster: two tasks, requeued by a signal and by pre-emption, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mwa_lightning.data.scenes import write_scenes
from mwa_lightning.data.shard_writing import write_shards
from mwa_lightning.data.sources import find_source
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm" / "train.sbatch"
# A cluster without graphics cards, of one processor a task.
PLACE = ("--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=20")
WORDS = (
    "trainer.accelerator=cpu",
    "trainer.precision=32",
    "data.batch_size=8",
    "data.num_workers=1",
    "optim.lr=1e-4",
    "optim.warmup_epochs=0",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "training.zero_shot=false",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where jobs are submitted; 40 pictures to train on, so an epoch has twelve global batches of 16."""
    folder = tmp_path_factory.mktemp("slurm")
    write_scenes(folder / "scenes", domain="target", seed=3, train=40, val=6, test=9)
    return folder


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, folder: Path) -> Cluster:
    """The cluster with mwa-train on the path of its jobs, as an activated environment has it."""
    programs = folder / "bin"
    programs.mkdir()
    program = programs / "mwa-train"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom mwa_lightning.cli.train import main\nsys.exit(main())\n")
    program.chmod(0o755)
    environment = cluster.environment | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(SCRIPT.parents[2]),
        "HOME": str(folder),
    }
    return replace(cluster, environment=environment)


def submit(jobs: Cluster, folder: Path, *words: str, place: tuple[str, ...] = ()) -> str:
    return jobs.submit(*PLACE, *place, f"--chdir={folder}", SCRIPT, f"data.root={folder / 'scenes'}", *WORDS, *words)


def run_of(folder: Path, job: str) -> Path:
    return folder / "logs" / "retrieval" / "scenes_mwa" / job


def output_of(folder: Path, job: str) -> str:
    return (folder / f"mwa-train-{job}.out").read_text()


def wait_for_step(run: Path, step: int, *, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not (run / "metrics.csv").is_file() or f"\n{step}," not in (run / "metrics.csv").read_text():
        assert time.monotonic() < end, f"no step {step} after {seconds:.0f} s"
        time.sleep(0.05)


def left_by(run: Path) -> tuple[bytes, dict[str, float], list[dict[str, str]]]:
    """What was trained, the figures, and the rows of the table; all but the times."""
    figures = json.loads((run / "metrics.json").read_text())
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if not row["name"].startswith("time/")]
    kept = {name: value for name, value in figures.items() if not name.startswith("time/")}
    return (run / "adapter.safetensors").read_bytes(), kept, rows


@pytest.fixture(scope="module")
def whole(jobs: Cluster, folder: Path) -> Path:
    """The directory of a job of two tasks that nothing happened to."""
    job = submit(jobs, folder)
    assert jobs.wait(job, seconds=600) == "COMPLETED", output_of(folder, job)
    return run_of(folder, job)


def test_train__two_tasks_speak_with_one_voice(whole: Path, folder: Path) -> None:
    said = output_of(folder, whole.name)
    for line in ("What trains", "epoch 1 of 2", "Retrieval on the test split"):
        assert said.count(line) == 1, said
    assert "warning" not in said.lower(), said
    assert (whole / "train.log").read_text().count("What trains") == 1
    assert len([row for row in left_by(whole)[2] if row["name"] == "train/loss"]) == 24


def test_train__two_tasks_share_the_weights(jobs: Cluster, folder: Path) -> None:
    job = submit(jobs, folder, "trainer=fsdp", "trainer.max_steps=3")
    assert jobs.wait(job, seconds=600) == "COMPLETED", output_of(folder, job)
    assert output_of(folder, job).count("Retrieval on the test split") == 1
    run = run_of(folder, job)
    assert "strategy: fsdp" in (run / "config.yaml").read_text()
    assert len([row for row in left_by(run)[2] if row["name"] == "train/loss"]) == 3


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
    assert output_of(folder, job).count("going on from") == 1
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
    assert output_of(folder, job).count("going on from") == 1
    assert left_by(run_of(folder, job)) == left_by(whole)


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
    assert re.search(r"stopped by SIGTERM after step \d+, which is saved", output_of(folder, job))
    assert "was requeued" not in output_of(folder, job).replace("was not requeued", "")


def test_train__tasks_that_do_not_fit_are_one_line_and_a_failed_rank_ends_the_job(jobs: Cluster, folder: Path) -> None:
    job = submit(jobs, folder, "trainer.devices=3")
    assert jobs.wait(job, seconds=300) == "FAILED"
    said = output_of(folder, job)
    assert "mwa-train: error: srun started 2 tasks on 1 machines, trainer.devices=3" in said
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
